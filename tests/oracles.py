"""Other projects that tests compare with, whose pins clash with ours: `make setup` puts them into .venv/oracles.

They are importable only inside `importable()`: among them is a plugin that Hydra would find and load.
"""

import contextlib
import sys

from tests.conftest import ROOT

FOLDER = ROOT / ".venv" / "oracles"


def has(package):
    """Whether a package is there."""
    return (FOLDER / package.replace(".", "/")).is_dir()


@contextlib.contextmanager
def importable():
    """Lets this process import them for a while, behind everything of our own."""
    sys.path.append(str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
