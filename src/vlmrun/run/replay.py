"""A run again, from its record, in an output root of its own where no stage of the first is found; and both compared.

`outputs/replays/<name>-<number>/<k>` is the root of the k-th replay of a run, laid out like `outputs` itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmrun import artifact, graph, jsonl, store
from vlmrun.artifact import Artifact
from vlmrun.config.schema import RunConfig, Stage, TrainStage
from vlmrun.config.validate import validate
from vlmrun.errors import CheckpointError, ConfigError, Problem
from vlmrun.run import record
from vlmrun.run.record import Record

_FOLDER = "replays"
_CACHES = {"image_cache": None, "tower_cache": None}
_LINES = (".jsonl",)  # files whose rows have times in them
_TIMES = ("seconds", "wait_seconds")


@dataclass(frozen=True)
class Compared:
    """A stage of both runs.

    Attributes:
        keys: of the first run and of the replay.
        n_files: of both together.
        differ: names of files that differ, or that one of them does not have.
        missing: why it cannot be compared; None: it was.
    """

    name: str
    keys: tuple[str, str | None]
    n_files: int = 0
    differ: tuple[str, ...] = ()
    missing: str | None = None

    @property
    def equal(self) -> bool:
        """Whether key and all digests are the same."""
        return self.missing is None and not self.differ and self.keys[0] == self.keys[1]


def config_of(found: Record, root: Path) -> RunConfig:
    """The configuration that a record holds, below another output root, with all that its stages need.

    Raises:
        ConfigError: when this version does not take it.
    """
    config, problems = validate(found.config)
    if config is None or problems:
        fix = "an earlier version wrote it: give the command of `vlmrun runs show` again, with today's keys"
        listed = [Problem(each.what, f"{record.NAME}: {each.where}", each.fix or fix) for each in problems]
        raise ConfigError(listed or [Problem("the record holds no configuration", record.NAME, fix)])
    stages = {name: _without_caches(stage) for name, stage in config.stage.items()}
    return config.model_copy(update={"output": str(root), "only": _needed(config), "stage": stages})


def _without_caches(stage: Stage) -> Stage:
    """A stage that computes everything again: what the first run left in a cache is not taken from there."""
    return stage.model_copy(update=_CACHES) if isinstance(stage, TrainStage) else stage


def _needed(config: RunConfig) -> list[str]:
    """Of a run of some stages only: those, and what they start from, which is not in the new root."""
    if not config.only:
        return []
    planned = {item.name: item for item in graph.plan(config)[0]}
    todo, found = list(config.only), set[str]()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += planned[name].needs if name in planned else []
    return [name for name in config.stage if name in found]


def root_of(outputs: Path, label: str) -> Path:
    """The root of a run's replay: that of the last one, when it is not finished yet, otherwise a new one."""
    base = outputs / _FOLDER / label.replace("/", "-")
    known = sorted(int(path.name) for path in base.glob("*") if path.name.isdecimal()) if base.is_dir() else []
    if known and not any(one.state == "finished" for _, one in record.all_of(base / str(known[-1]))):
        return base / str(known[-1])
    return base / str(1 + max(known, default=0))


def compare(outputs: Path, found: Record, root: Path) -> list[Compared]:
    """Every stage of the first run beside that of the replay."""
    made = {item.name: (folder, item) for folder, item in store.artifacts(root)}
    return [_compare(name, stage.key, outputs, made.get(name)) for name, stage in found.stages.items()]


def _compare(name: str, key: str, outputs: Path, again: tuple[Path, Artifact] | None) -> Compared:
    folder = store.folder(outputs, name, key)
    first = store.finished(folder)
    if again is None:
        return Compared(name, (key, None), missing="the replay has no such stage")
    place, second = again
    if first is None:
        return Compared(name, (key, second.key), missing=f"{folder} is gone")
    names = sorted(first.files.keys() | second.files.keys())
    differ = tuple(each for each in names if not _is_equal(each, (folder, first), (place, second)))
    return Compared(name, (key, second.key), len(names), differ)


def _is_equal(name: str, *sides: tuple[Path, Artifact]) -> bool:
    digests = [item.files[name].sha256 if name in item.files else None for _, item in sides]
    if None in digests or digests[0] == digests[1]:
        return None not in digests
    if not name.endswith(_LINES):
        return False
    try:
        first, second = (list(_rows(folder / name)) for folder, _ in sides)
    except (OSError, ValueError):
        return False
    return first == second


def _rows(path: Path) -> Iterator[Any]:
    """Rows of a file without the times in them."""
    for line in jsonl.lines(path):
        row = json.loads(line)
        yield {key: value for key, value in row.items() if key not in _TIMES} if isinstance(row, dict) else row


def changed(found: Record) -> list[str]:
    """What is not as it was when the run was started: versions of libraries."""
    now = artifact.environment()
    versions = found.last.versions.items()
    return [f"{name} {was}, now {now.get(name, 'absent')}" for name, was in versions if now.get(name) != was]


def folder_of(found: Record) -> Path:
    """The folder that the run was started in: relative paths of its configuration start there.

    Raises:
        CheckpointError: when it is not here.
    """
    folder = Path(found.last.folder)
    if not folder.is_dir():
        fix = "make it again, or run the command of `vlmrun runs show` where its data are"
        raise CheckpointError("the folder that the run was started in is not here", str(folder), fix)
    return folder
