"""The loop over a run's stages: reuse, or launch, verify, next."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmrun import artifact, graph, kinds, locks, logs, store
from vlmrun.cluster.channel import Guard
from vlmrun.cluster.follower import follow
from vlmrun.cluster.leader import NOBODY, Crew
from vlmrun.cluster.node import Node
from vlmrun.config import derived
from vlmrun.config.job import JOB_FILE, StageJob
from vlmrun.config.schema import BenchmarkConfig, DataConfig, HardwareConfig, RunConfig
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.graph import Planned
from vlmrun.outcome import Outcome
from vlmrun.run import identity, launch
from vlmrun.run.watch import Watch

log = logs.get(__name__)


@dataclass
class Run:
    """A run on its way: what is planned, under which keys, and what is finished so far."""

    config: RunConfig
    planned: list[Planned]
    keys: dict[str, str]
    folder: Path
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The output root, absolute: stage folders know their parents by full path."""
        return Path(self.config.output).expanduser().resolve()

    @property
    def identity(self) -> dict[str, str]:
        """What nodes that carry out one run must agree on."""
        return {**self.keys, "the hardware": self.config.hardware.model_dump_json()}

    def stage_folder(self, name: str) -> Path:
        """The folder of one of the run's stages.

        Raises:
            ConfigError: for a stage without a key.
        """
        if name not in self.keys:
            raise ConfigError(
                f"stage {name!r}, or one that it starts from, reads a file that is not here",
                f"stage.{name}",
                "vlmrun check with the same overrides, but without only, names the file",
            )
        return store.folder(self.root, name, self.keys[name])


def prepare(config: RunConfig, folder: Path | None = None) -> Run:
    """Orders a checked run and names its folders; touches nothing on disk."""
    planned, problems = graph.plan(config)
    graph.require(problems)
    root = Path(config.output).expanduser().resolve()
    return Run(config, planned, identity.keys(planned, config), folder or root / "runs" / config.name)


def execute(run: Run, crew: Crew = NOBODY) -> list[Outcome]:
    """Runs what is not finished yet, parents first.

    Args:
        crew: the other nodes that work with this one.

    Raises:
        VlmrunError: the first stage's error; what was finished before it stays finished.
    """
    chosen = graph.selected(run.planned, run.config.only)
    _require_parents(run, chosen)
    for position, item in enumerate(chosen, 1):
        outcome = _one(run, item, f"[{position}/{len(chosen)}]", crew)
        run.outcomes.append(outcome)
        _link(run.folder / "stages" / outcome.name, outcome.folder)
    return run.outcomes


def make_data(run: Run, names: Collection[str]) -> None:
    """Runs prepare stages alone, for who looks at data without training on it."""
    for item in run.planned:
        if item.name in names:
            _one(run, item, "[data]", NOBODY)


def work_along(run: Run, node: Node) -> None:
    """On a node that is not the first: starts its ranks of whatever node 0 starts, until the run is over.

    Raises:
        VlmrunError: what went wrong there, or between here and there.
    """
    jobs = {item.name: item for item in run.planned}

    def start(name: str, attempt: int, port: int, guard: Guard) -> int:
        job = job_of(run, jobs[name])
        watch = Watch(job)
        code, stopped = launch.once(job, launch.Start(port, attempt, node), guard, watch)
        if watch.hung:
            log.warning("%s", watch.hangs())
        if stopped:
            raise KeyboardInterrupt
        return code

    follow(node, run.root, run.identity, run.config.hardware.timeout_seconds, start)


def _one(run: Run, item: Planned, position: str, crew: Crew) -> Outcome:
    folder = run.stage_folder(item.name)
    found = store.finished(folder)
    if found is not None:
        log.info("%s %s: reused, %s", position, item.name, _short(folder))
        return Outcome(item.name, found, folder, reused=True)
    with locks.lock(folder, wait=run.config.if_busy == "wait", say=log.info) as lock_fd:
        found = store.finished(folder)  # another process may have finished it while we waited
        if found is not None:
            log.info("%s %s: finished by another process, %s", position, item.name, _short(folder))
            return Outcome(item.name, found, folder, reused=True)
        job = job_of(run, item)
        artifact.write_text(folder / JOB_FILE, job.to_json())
        log.info("%s %s: %s, %s", position, item.name, kinds.of(item.stage).describe(item.stage), _short(folder))
        started = time.monotonic()
        launch.run(job, lock_fd, crew)
        found = store.finished(folder)
    if found is None:
        raise CheckpointError(f"stage {item.name!r} ended without an artifact", str(folder), "see logs/ in that folder")
    log.info("%s %s: done in %.1f s%s", position, item.name, time.monotonic() - started, _headline(found.summary))
    return Outcome(item.name, found, folder, reused=False)


def job_of(run: Run, item: Planned) -> StageJob:
    """The stage with everything resolved: parents to folders, data to absolute paths."""
    parents = {
        reference: str(run.stage_folder(name) if name else Path(reference).expanduser().resolve())
        for reference, name in item.parents.items()
    }
    data = {
        name: _absolute(run.config.data[name], run.stage_folder(item.prepared[name]) if name in item.prepared else None)
        for name in derived.sources(item.stage)
    }
    return StageJob(
        name=item.name,
        key=run.keys[item.name],
        run=run.config.name,
        folder=str(run.stage_folder(item.name)),
        stage=item.stage,
        model=run.config.model,
        data=data,
        parents=parents,
        prepared=sorted({str(run.stage_folder(maker)) for maker in item.prepared.values()}),
        hardware=_hardware(item, run.config.hardware),
        tracking=run.config.tracking,
        composed=run.config.model_dump(mode="json", by_alias=True) if run.config.tracking else {},
    )


def _hardware(item: Planned, hardware: HardwareConfig) -> HardwareConfig:
    """What all ranks share spreads over nodes: training and evaluation; everything else happens on the first one."""
    return hardware if kinds.of(item.stage).shares else hardware.model_copy(update={"nodes": 1})


def _absolute(data: DataConfig, prepared: Path | None) -> DataConfig:
    base = prepared / "data" if prepared else Path.cwd()
    changes: dict[str, Any] = {"annotations": str(base / Path(data.annotations).expanduser()), "prepare": None}
    if data.images is not None:
        changes["images"] = str(base / Path(data.images).expanduser())
    changes["image_roots"] = [str(Path.cwd() / Path(other).expanduser()) for other in data.image_roots]
    if isinstance(data, BenchmarkConfig) and data.gold is not None:
        changes["gold"] = str(base / Path(data.gold).expanduser())
    return data.model_copy(update=changes)


def _require_parents(run: Run, chosen: list[Planned]) -> None:
    names = {item.name for item in chosen}
    for item in chosen:
        for name in item.needs:
            if name not in names and store.finished(run.stage_folder(name)) is None:
                raise CheckpointError(
                    f"stage {item.name!r} starts from {name!r}, which is not finished with these settings",
                    str(run.stage_folder(name)),
                    f"run it too: only=[{name},{item.name}], or leave `only` out",
                )


def _headline(summary: dict[str, Any]) -> str:
    names = {"loss": "loss", "eval_loss": "held-out loss", "accuracy": "accuracy"}
    shown = [f"{name} {summary[key]:.4g}" for key, name in names.items() if isinstance(summary.get(key), int | float)]
    return "".join(f", {text}" for text in shown)


def _short(folder: Path) -> str:
    return os.path.relpath(folder)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and str(link.readlink()) == os.path.relpath(target, link.parent):
        return  # a finished run on a disk that cannot be written
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
