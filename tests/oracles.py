"""Other projects that tests compare with, whose pins clash with ours: `make setup` puts them into .venv/oracles."""

import sys

from tests.conftest import ROOT

FOLDER = ROOT / ".venv" / "oracles"


def has(package):
    """Whether a package is there."""
    return (FOLDER / package.replace(".", "/")).is_dir()


def add():
    """Lets this process import them, behind everything of our own."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
