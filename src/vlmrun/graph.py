"""A run's stages in the order their references ask for, with a prepare stage for each dataset that is made here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from vlmrun import artifact, kinds, store
from vlmrun.config import derived, marks
from vlmrun.config.marks import Parent, Source
from vlmrun.config.schema import DataConfig, PrepareStage, RunConfig, StageNode
from vlmrun.errors import CheckpointError, ConfigError, Problem, suggest


@dataclass(frozen=True)
class Planned:
    """A stage with what it needs.

    Args:
        parents: each reference of the stage (`init_from`, `models`) to the name of a stage of this run, or to None when
            it is the path of an artifact.
        prepared: names of its data sources to the prepare stage that makes their files.
    """

    name: str
    stage: StageNode
    parents: dict[str, str | None]
    prepared: dict[str, str]

    @property
    def needs(self) -> list[str]:
        """Stages of this run that come first."""
        return [name for name in self.parents.values() if name is not None] + sorted(set(self.prepared.values()))


def plan(run: RunConfig) -> tuple[list[Planned], list[Problem]]:
    """All stages, parents first, and what is wrong with their references. Stages in a cycle are left out."""
    problems: list[Problem] = []
    makers = _prepare_stages(run)
    planned: dict[str, Planned] = {
        name: Planned(name, PrepareStage(kind="prepare", source=run.data[users[0]].prepare), {}, {})  # type: ignore[arg-type]
        for name, users in makers.items()
    }
    maker_of = {user: name for name, users in makers.items() for user in users}
    for name, stage in run.stage.items():
        parents = _parents(name, stage, run, problems)
        for key, source in marks.named(stage, Source):
            if source not in run.data:
                fix = suggest(source, run.data, noun="selected data")
                problems.append(Problem(f"no data {source!r}", f"stage.{name}.{key}", fix))
        prepared = {source: maker_of[source] for source in derived.sources(stage) if source in maker_of}
        planned[name] = Planned(name, stage, parents, prepared)
    for name in run.only:
        if name not in run.stage:
            problems.append(Problem(f"no stage {name!r}", "only", suggest(name, run.stage, noun="stages")))
    return _ordered(planned, problems), problems


def selected(planned: list[Planned], only: list[str]) -> list[Planned]:
    """The stages to run: all of them, or those of `only` with the data they need; data nobody reads is not made."""
    chosen = [item for item in planned if not only or item.name in only]
    wanted = {item.name for item in chosen if not isinstance(item.stage, PrepareStage)}
    wanted |= {name for item in chosen for name in item.prepared.values()}
    return [item for item in planned if item.name in wanted]


def _prepare_stages(run: RunConfig) -> dict[str, list[str]]:
    """Stage name -> data sources, one stage for each distinct `prepare`, named after its module (`shapes`)."""
    by_target: dict[str, list[str]] = {}
    for name, data in run.data.items():
        if data.prepare is not None:
            by_target.setdefault(data.prepare.model_dump_json(by_alias=True), []).append(name)
    named: dict[str, list[str]] = {}
    for users in by_target.values():
        stem = _stem(run.data[users[0]])
        name = stem if stem not in named and stem not in run.stage else f"{stem}_{users[0]}"
        named[name] = users
    return named


def _stem(data: DataConfig) -> str:
    assert data.prepare is not None
    parts = data.prepare.target.split(".")
    return parts[-2] if len(parts) > 1 else parts[0]


def _parents(name: str, stage: StageNode, run: RunConfig, problems: list[Problem]) -> dict[str, str | None]:
    parents: dict[str, str | None] = {}
    for key, reference in marks.named(stage, Parent):
        where = f"stage.{name}.{key}"
        if reference in run.stage:
            if not kinds.of(run.stage[reference]).makes_model:
                problems.append(Problem(f"stage {reference!r} makes no model", where, "start from what it evaluates"))
            parents[reference] = reference
            continue
        folder = Path(reference).expanduser()
        if (folder / artifact.NAME).is_file() or kinds.of(stage).reads(folder):
            parents[reference] = None
            problems += _unusable(folder, Path(run.output), where)
        elif folder.is_dir():
            problems.append(
                Problem(
                    f"{reference!r} is not a finished artifact: it has no {artifact.NAME}",
                    where,
                    "run its stage to the end",
                )
            )
        else:
            fix = suggest(reference, run.stage, noun="stages") + "; or the folder of an artifact (vlmrun ls lists them)"
            problems.append(Problem(f"{reference!r} is neither a stage of this run nor an artifact folder", where, fix))
    return parents


def _unusable(folder: Path, root: Path, where: str) -> list[Problem]:
    """That an artifact was changed, or is a checkpoint from elsewhere."""
    try:
        store.require_trusted(root, folder)
        store.require_unchanged(folder)
    except CheckpointError as error:
        return [replace(problem, where=f"{where}: {problem.where}") for problem in error.problems]
    return []


def _ordered(planned: dict[str, Planned], problems: list[Problem]) -> list[Planned]:
    """Parents first; where references leave a choice, in the order of the configuration."""
    sorter = _sorter(planned, problems)
    place = {name: number for number, name in enumerate(planned)}
    ordered: list[Planned] = []
    ready: set[str] = set()
    while sorter.is_active():
        ready.update(sorter.get_ready())
        name = min(ready, key=place.__getitem__)
        ready.remove(name)
        ordered.append(planned[name])
        sorter.done(name)
    return ordered


def _sorter(planned: dict[str, Planned], problems: list[Problem]) -> TopologicalSorter[str]:
    """Of all stages but those of a cycle, each of which is a problem."""
    left = planned
    while True:
        sorter = TopologicalSorter({name: set(item.needs) & left.keys() for name, item in left.items()})
        try:
            sorter.prepare()
            return sorter
        except CycleError as error:
            cycle: list[str] = error.args[1][::-1]  # it lists what comes first first
            problems.append(
                Problem(f"stages wait for each other: {' -> '.join(cycle)}", f"stage.{cycle[0]}", "break the circle")
            )
            left = {name: item for name, item in left.items() if name not in cycle}


def require(problems: list[Problem]) -> None:
    """Raises all problems at once, if there are any."""
    if problems:
        raise ConfigError(problems)
