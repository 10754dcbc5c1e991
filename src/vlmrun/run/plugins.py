"""Sweeps that Hydra's plugins choose or place the points of: launchers as joblib and submitit, sweepers as Optuna.

`-m` with any override of `hydra` comes here. Hydra composes, the plugin says which points there are and where they run;
each of them is the same run function as always, in a light process that starts the ranks. Stages that points share are
trained once: their folders are locked, and a point that waits for one reuses it.
A point never raises inside a plugin, which would stop the others. How it went is left in its folder and gathered here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vlmrun import artifact, kinds, locks, logs
from vlmrun.checks.sweeps import INSTALL
from vlmrun.config import compose as composing
from vlmrun.config import overrides as words
from vlmrun.config.schema import RunConfig
from vlmrun.errors import ConfigError, LaunchError, VlmrunError, error_from_dict, suggest
from vlmrun.outcome import Job, Outcome
from vlmrun.report import run_table, tables
from vlmrun.run.pipeline import Run
from vlmrun.run.sweep import record

log = logs.get(__name__)

# Overrides, folders of configuration, the run's folder -> the finished run.
RunOne = Callable[[Sequence[str], Sequence[Path], Path], Run]

_POINT = "point.json"
# What plugins raise: Hydra's own kinds, and what joblib, submitit and Optuna derive from.
_REFUSALS = (HydraException, OmegaConfBaseException, ValueError, RuntimeError, OSError, ImportError)


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is about the run, and what is about Hydra itself."""
    own = [text for text in overrides if not _is_hydras(text)]
    return own, [text for text in overrides if _is_hydras(text)]


def fixed(overrides: Sequence[str]) -> list[str]:
    """The overrides that are the same for all points."""
    found = []
    for text in overrides:
        try:
            if not words.parse(text).is_sweep_override():
                found.append(text)
        except HydraException:
            found.append(text)
    return found


def run(overrides: Sequence[str], config_dirs: Sequence[Path], root: Path, one: RunOne) -> int:
    """Hands a sweep to Hydra.

    Args:
        one: runs a point; a function of a module, since launchers pickle it.
        root: the output root; the sweep gets a folder below it.

    Returns:
        0, or the exit code of the first failed point.

    Raises:
        ConfigError: when Hydra or a plugin refuses, and no point was run.
    """
    own, hydras = split(overrides)
    folder = locks.claim(root / "sweeps", time.strftime("%Y-%m-%d_%H-%M-%S")).resolve()
    dirs = [path.resolve() for path in config_dirs]
    task = functools.partial(point, one, dirs)
    refused: Exception | None = None
    try:
        _multirun(task, [*_ours(folder, dirs, hydras), *hydras, *own], composing.conf_dir())
    except _REFUSALS as error:
        refused = error
    jobs = list(_gather(folder, own))
    if refused is not None:
        said = " ".join(str(refused).split("Config search path")[0].split()) or type(refused).__name__
        fix = f"hydra.cc/docs/plugins says what a plugin takes; those known to work come with {INSTALL}"
        told = ConfigError(f"the sweep was refused: {said}", " ".join(hydras), fix)
        if not jobs:
            raise told from refused
        log.error("%s", told)
    artifact.write_json(folder / "sweep.json", [record(job) for job in jobs])
    with tables.printed():
        run_table.compare(jobs)
    codes = [job.error.exit_code for job in jobs if job.error is not None]
    return next(iter(codes), 0 if refused is None else ConfigError.exit_code)


def point(one: RunOne, config_dirs: list[Path], _config: DictConfig) -> float | None:
    """One point, in whatever process a launcher has made for it.

    Returns:
        Its objective, for sweepers that look for the best; None when it failed.
    """
    logs.setup()
    hydra = HydraConfig.get()
    overrides = [str(text) for text in hydra.overrides.task]
    folder = Path(hydra.runtime.output_dir)
    log.info("trial %s: %s", hydra.job.num, folder)
    outcomes: list[Outcome] = []
    value = error = None
    try:
        with _without_hydra():
            made = one(overrides, config_dirs, folder)
        outcomes = made.outcomes
        value = objective(made.config, outcomes)
    except (VlmrunError, OSError) as cause:
        error = cause if isinstance(cause, VlmrunError) else LaunchError(str(cause), str(cause.filename or folder))
        log.error("%s", error)
    found = {
        "number": int(hydra.job.num),
        "overrides": overrides,
        "outcomes": [{"name": item.name, "folder": str(item.folder), "reused": item.reused} for item in outcomes],
        "error": error.to_dict() if error else None,
    }
    artifact.write_json(folder / _POINT, found)
    return value


def objective(config: RunConfig, outcomes: Sequence[Outcome]) -> float | None:
    """The number that a run is judged by: `objective`, or the last accuracy, or else the last loss.

    Raises:
        ConfigError: when the stage that was named has no such number.
    """
    if config.objective is not None:
        stage, _, name = config.objective.partition(".")
        summary = next((item.artifact.summary for item in outcomes if item.name == stage), {})
        value = run_table.number(summary, name)
        if value is None:
            numbers = [key for key in summary if run_table.number(summary, key) is not None]
            raise ConfigError(
                f"stage {stage!r} has no number {name!r}", "objective", suggest(name, numbers, noun="numbers")
            )
        return value
    judged = [(kinds.of_artifact(item.artifact.kind).objective, item.artifact.summary) for item in outcomes]
    for name in ("accuracy", "loss"):
        values = [run_table.number(summary, name) for objective, summary in judged if objective == name]
        told = [value for value in values if value is not None]
        if told:
            return told[-1]
    return None


@contextlib.contextmanager
def _without_hydra() -> Iterator[None]:
    """Hydra composes our run by itself inside the one that started us; it allows one of them at a time."""
    outer = GlobalHydra.instance()
    kept = outer.hydra
    outer.clear()
    try:
        yield
    finally:
        outer.clear()
        if kept is not None:
            outer.initialize(kept)


def _key(override: str) -> str:
    return override.partition("=")[0]


def _is_hydras(text: str) -> bool:
    return text.lstrip("+~").startswith(("hydra/", "hydra."))


def _ours(folder: Path, dirs: Sequence[Path], hydras: Sequence[str]) -> list[str]:
    """What Hydra is given besides what the user says, who has the last word."""
    searched = ",".join(f"'file://{path}'" for path in composing.search_path(dirs))
    found = [
        f"hydra.sweep.dir='{folder}'",
        "hydra.sweep.subdir=${hydra.job.num}",
        "hydra.job.chdir=false",
        *("hydra/job_logging=none", "hydra/hydra_logging=none"),  # all else would switch our loggers off
        f"hydra.searchpath=[{searched}]",
    ]
    if any(text.startswith("hydra/sweeper=optuna") for text in hydras):
        found.append("hydra.sweeper.max_failure_rate=1.0")  # a point that fails does not stop the others
    return found


def _multirun(task: Any, overrides: list[str], conf: Path) -> None:
    # Hydra's public way in is a decorator that reads sys.argv and leaves the process when something is wrong.
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    try:
        hydra = Hydra.create_main_hydra2("vlmrun", create_config_search_path(str(conf)))
        hydra.multirun("config", task, overrides, with_log_configuration=False)
    finally:
        GlobalHydra.instance().clear()


def _gather(folder: Path, asked: Sequence[str]) -> Iterator[Job]:
    """What the points have left behind, in their order.

    Args:
        asked: the sweep's overrides. What a point has beside the fixed ones sets it apart; so does a key given twice.
    """
    same = fixed(asked)
    swept = {_key(text) for text in asked if text not in same}
    shared = {_key(text) for text in same} - swept
    found = [json.loads(path.read_text("utf-8")) for path in folder.glob(f"*/{_POINT}")]
    for entry in sorted(found, key=lambda entry: int(entry["number"])):
        outcomes = []
        for item in entry["outcomes"]:
            made = artifact.read(Path(item["folder"]))
            if made is not None:
                outcomes.append(Outcome(item["name"], made, Path(item["folder"]), item["reused"]))
        own = [text for text in entry["overrides"] if _key(text) not in shared]
        error = error_from_dict(entry["error"]) if entry["error"] else None
        yield Job(entry["number"], own, folder / str(entry["number"]), outcomes, error)
