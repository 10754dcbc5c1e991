"""Rules about the overrides of a command that concern Hydra itself: sweepers, launchers, folders of sweeps."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

from vlmrun.checks.table import Rule
from vlmrun.errors import Problem

_PACKAGES = {
    ("launcher", "joblib"): "hydra_joblib_launcher",
    ("launcher", "submitit_local"): "hydra_submitit_launcher",
    ("launcher", "submitit_slurm"): "hydra_submitit_launcher",
    ("sweeper", "optuna"): "hydra_optuna_sweeper",
}
INSTALL = "pip install 'vlmrun-trainer[sweep]'"


def _overrides(hydras: Sequence[str], *, multirun: bool) -> Iterator[Problem]:
    """Overrides of Hydra that do not go, and plugins that are missing."""
    for text in hydras:
        key, _, value = text.lstrip("+").partition("=")
        kind = key.removeprefix("hydra/")
        package = _PACKAGES.get((kind, value))
        if not multirun:
            yield Problem(f"{key} is about sweeps", text, "vlmrun -m ...")
        elif key in ("hydra.sweep.dir", "hydra.sweep.subdir"):
            yield Problem(f"{key} is not free: vlmrun names a sweep's folder", text, "output=FOLDER")
        elif package is not None and not _is_installed(package):
            yield Problem(f"{package.replace('_', '-')} is not installed", text, INSTALL)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:
        return False


RULES = (
    Rule("hydra-overrides", "Overrides of Hydra belong to sweeps, leave a sweep's folder alone, and name plugins that "
         "are installed.", ("hydra",), _overrides, here=True),
)  # fmt: skip
