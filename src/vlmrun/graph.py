"""A run's stages in the order their references ask for, with a prepare stage for each dataset that is made here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmrun import artifact, store
from vlmrun.config import derived
from vlmrun.config.schema import DataConfig, PrepareStage, RunConfig, Stage
from vlmrun.errors import ConfigError, Problem, suggest


@dataclass(frozen=True)
class Planned:
    """A stage with what it needs.

    Args:
        parents: each reference of the stage (`init_from`, `models`) to the name of a stage of this run, or to None when
            it is the path of an artifact.
        prepared: names of its data sources to the prepare stage that makes their files.
    """

    name: str
    stage: Stage
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
        sources = derived.sources(stage)
        for source in sources:
            if source not in run.data:
                key = "data" if source in getattr(stage, "data", []) else "eval.data"
                fix = suggest(source, run.data, noun="selected data")
                problems.append(Problem(f"no data {source!r}", f"stage.{name}.{key}", fix))
        prepared = {source: maker_of[source] for source in sources if source in maker_of}
        planned[name] = Planned(name, stage, parents, prepared)
    for name in run.only:
        if name not in run.stage:
            problems.append(Problem(f"no stage {name!r}", "only", suggest(name, run.stage, noun="stages")))
    return _ordered(planned, problems), problems


def selected(planned: list[Planned], only: list[str]) -> list[Planned]:
    """The stages to run: all of them, or those of `only` with the data they need; data nobody reads is not made."""
    chosen = [item for item in planned if not only or item.name in only]
    wanted = {item.name for item in chosen if item.stage.kind != "prepare"}
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


def _parents(name: str, stage: Stage, run: RunConfig, problems: list[Problem]) -> dict[str, str | None]:
    parents: dict[str, str | None] = {}
    for reference in derived.parent_names(stage):
        where = f"stage.{name}.{_key_of(reference, stage)}"
        if reference in run.stage:
            if run.stage[reference].kind == "evaluate":
                problems.append(Problem(f"stage {reference!r} makes no model", where, "start from what it evaluates"))
            parents[reference] = reference
            continue
        folder = Path(reference).expanduser()
        if (folder / artifact.NAME).is_file():
            parents[reference] = None
        elif (stage.kind == "convert" and folder.exists()) or (stage.kind == "evaluate" and store.is_model(folder)):
            parents[reference] = None  # in another format; in which, its content says
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


def _key_of(reference: str, stage: Stage) -> str:
    """The key that names this parent."""
    listed = (key for key in ("models", "adapters") if reference in getattr(stage, key, []))
    return next(listed, None) or ("base_model" if getattr(stage, "base_model", None) == reference else "init_from")


def _ordered(planned: dict[str, Planned], problems: list[Problem]) -> list[Planned]:
    """Depth-first, keeping the order of the configuration where references leave a choice."""
    done: dict[str, Planned] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done or name not in planned:
            return
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            problems.append(Problem(f"stages wait for each other: {circle}", f"stage.{name}", "break the circle"))
            return
        path.append(name)
        for need in planned[name].needs:
            visit(need)
        path.pop()
        done[name] = planned[name]

    for name in planned:
        visit(name)
    return list(done.values())


def require(problems: list[Problem]) -> None:
    """Raises all problems at once, if there are any."""
    if problems:
        raise ConfigError(problems)
