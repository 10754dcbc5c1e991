"""The run verbs: compose, check, run; once, or once for every point of a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from vlmrun import artifact, graph, kinds, logs
from vlmrun.checks import environment, rates, records, rules, table
from vlmrun.checks import hardware as hardware_checks
from vlmrun.cli import next_commands
from vlmrun.cli.request import Request, read
from vlmrun.cluster import leader
from vlmrun.cluster import node as nodes
from vlmrun.config import compose as composing
from vlmrun.config.schema import RunConfig, TrainStage
from vlmrun.config.validate import validate
from vlmrun.doctor import evidence
from vlmrun.doctor import rules as diagnosis
from vlmrun.errors import ConfigError, DataError, Problem
from vlmrun.names import RUN_CONFIG
from vlmrun.plan import run as planning
from vlmrun.report import tables
from vlmrun.run import numbers, pipeline, plugins, record, sweep
from vlmrun.site import keep

log = logs.get(__name__)


def train(arguments: list[str]) -> int:
    """`vlmrun [train]`: a run, a sweep (`-m`), or the composed text (`--cfg job`)."""
    request = read(arguments)
    logs.setup()
    own, hydras = plugins.split(request.overrides)
    if request.show_config:
        return _show(request)
    graph.require(rules.check_overrides(hydras, multirun=request.multirun))
    if request.multirun:
        tree = composing.compose(plugins.fixed(own), request.config_dirs).tree
        root = Path(str(tree.get("output", "outputs"))).expanduser()
        if hydras:
            return plugins.run(request.overrides, request.config_dirs, root, run)
        dirs = request.config_dirs
        return sweep.run(
            request.overrides, root, lambda point, folder: run(point, dirs, folder), lambda point: _fault(point, dirs)
        )
    run(request.overrides, request.config_dirs)
    return 0


def _show(request: Request) -> int:
    """`--cfg job`: as much as there is, also where values are still open (`???`).

    Raises:
        ConfigError: after it, with what stands in the way of a run.
    """
    composed = composing.compose(request.overrides, request.config_dirs)
    for note in composed.notes:
        log.info("%s", note)
    config, problems = validate(composed.tree, composed.problems)
    if config is not None:
        sys.stdout.write(_text(config))
    elif composed.tree:
        sys.stdout.write(OmegaConf.to_yaml(OmegaConf.create(composed.tree)))
    sys.stdout.flush()
    graph.require([*composed.problems, *problems])
    return 0


def check(arguments: list[str]) -> int:
    """`vlmrun check`: raises every problem found, or prints what would be run. With `-m`, of every point."""
    request = read(arguments)
    logs.setup()
    own, hydras = plugins.split(request.overrides)
    points = [point for point, _ in sweep.expand(own, ends=bool(hydras))] if request.multirun else [own]
    configs: list[RunConfig] = []
    unusable: list[Problem] = []
    problems = rules.check_overrides(hydras, multirun=request.multirun)
    for point in points:
        try:
            configs.append(compose(point, request.config_dirs))
            problems += rules.check(configs[-1])
            unusable += rules.check_records(configs[-1])
        except ConfigError as error:
            problems += error.problems
    for warning in dict.fromkeys(warning for config in configs for warning in _warnings(config)):
        log.warning("%s", warning)
    graph.require(list(dict.fromkeys([*problems, *(unusable if problems else [])])))
    if unusable:
        raise DataError(list(dict.fromkeys(unusable)))
    for config in configs:
        _list_stages(config)
    return 0


def _warnings(config: RunConfig) -> list[str]:
    ignored = environment.without_effect(config, os.environ)
    return [*planning.warnings(config), *rates.warnings(config), *records.unread(config), *ignored]


def _fault(point: Sequence[str], config_dirs: Sequence[Path]) -> ConfigError | None:
    """What is wrong with one point of a sweep."""
    try:
        graph.require(rules.check(compose(point, config_dirs)))
    except ConfigError as error:
        return error
    return None


def print_nodes(arguments: list[str]) -> int:
    """`vlmrun nodes`: a shell script that runs this command on every node of a host file."""
    config = compose(read(arguments).overrides, read(arguments).config_dirs)
    graph.require(table.problems(hardware_checks.RULES, config))
    if config.hardware.hostfile is None or config.hardware.nodes == 1:
        raise ConfigError(
            "there is no list of nodes",
            "hardware.hostfile",
            "hardware.nodes=2 hardware.hostfile=FILE of lines `HOST slots=N`",
        )
    sys.stdout.write("\n".join(nodes.commands(config.hardware, arguments)) + "\n")
    return 0


def _list_stages(config: RunConfig) -> None:
    planned = pipeline.prepare(config)
    for item in graph.selected(planned.planned, config.only):
        folder = planned.stage_folder(item.name)
        state = "finished" if artifact.read(folder) else "to do"
        updates = planning.updates(config, item.stage) if isinstance(item.stage, TrainStage) else None
        what = f"{kinds.of(item.stage).describe(item.stage)}{'' if updates is None else f', {updates}'}"
        sys.stdout.write(f"{state:9} {item.name:14} {planned.keys[item.name]}  {what}{_idle(config, item)}\n")
    sys.stdout.write(f"ok: {config.name} has no problems\n")


def _idle(config: RunConfig, item: graph.Planned) -> str:
    """How many of the given ranks a stage leaves idle, in words; nothing of one that uses all."""
    n_given = config.hardware.nodes * config.hardware.ranks_per_node
    return "" if n_given == 1 or kinds.of(item.stage).shares else f", on 1 of {n_given} ranks"


def run(overrides: Sequence[str], config_dirs: Sequence[Path], folder: Path | None = None) -> pipeline.Run:
    """One run from its overrides to its report."""
    return carry_out(compose(overrides, config_dirs), (overrides, config_dirs), folder)


def carry_out(
    config: RunConfig, command: tuple[Sequence[str], Sequence[Path]], folder: Path | None = None
) -> pipeline.Run:
    """One run from its configuration to its report.

    Args:
        command: the overrides and the folders of `--config-dir` that it was composed of.
        folder: of the run; None: the one that its name and configuration have.
    """
    from vlmrun.report import benchmarks, run_page, run_table

    graph.require(rules.check(config))
    node = nodes.here(config.hardware, os.environ)
    for warning in [*environment.without_effect(config, os.environ), *rates.warnings(config)]:
        log.warning("%s", warning)
    planned = pipeline.prepare(config, folder)
    if node.rank > 0:
        pipeline.work_along(planned, node)
        return planned
    if folder is None:
        planned.folder = numbers.claim(planned.root / "runs" / config.name, _text(config))
    else:
        artifact.write_text(planned.folder / RUN_CONFIG, _text(config))
    with keep.kept(planned.root), record.kept(planned.folder, config, command, lambda: planned.outcomes):
        try:
            with leader.lead(node, planned.root, planned.identity, config.hardware.timeout_seconds) as others:
                pipeline.execute(planned, others)
        finally:
            if planned.outcomes:
                with tables.printed():
                    run_table.show(run_table.summary(planned.outcomes), config.name)
                    benchmarks.write({outcome.name: outcome.folder for outcome in planned.outcomes}, sys.stdout)
    nothing = all(outcome.reused for outcome in planned.outcomes) and (planned.folder / run_page.NAME).is_file()
    if not nothing:
        run_page.write(planned.folder, config.name, planned.outcomes)
    report = planned.folder / run_page.NAME if folder is not None else numbers.report(planned.folder)
    if nothing:
        log.info("nothing to do: every stage was finished")
    commands = next_commands.lines(planned, *command)
    with tables.printed():
        sys.stdout.write(f"report: {report}\n")
        if folder is None and commands:  # a point of a sweep is followed by the next point
            sys.stdout.write("next:\n" + "".join(f"  {line}\n" for line in commands))
    if not nothing:
        _warn_of_faults(planned)
    return planned


def _warn_of_faults(made: pipeline.Run) -> None:
    """What points to a model that has not learned, in a few lines."""
    try:
        said = diagnosis.messages(evidence.read([outcome.folder for outcome in made.outcomes]))
    except Exception as error:  # noqa: BLE001 - the run is finished, whatever its files look like
        what = str(error).partition("\n")[0]
        log.warning("whether the model has learned was not looked at: %s: %s", type(error).__name__, what)
        return
    for line in said:
        log.warning("%s", line)
    if said:
        log.warning("causes, and what to try: vlmrun doctor %s", os.path.relpath(made.folder))


def compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> RunConfig:
    """Overrides -> a typed run.

    Raises:
        ConfigError: with every problem of names, values and types.
    """
    composed = composing.compose(overrides, config_dirs)
    for note in composed.notes:
        log.info("%s", note)
    config, problems = validate(composed.tree, composed.problems)
    if config is None or composed.problems or problems:
        if config is not None and composed.problems:
            told = {problem.where for problem in composed.problems}  # what has no value is no wrong value too
            problems += [problem for problem in rules.check(config) if problem.where not in told]
        raise ConfigError([*composed.problems, *problems])
    return config


def _text(config: RunConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(by_alias=True)))
