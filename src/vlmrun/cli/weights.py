"""`vlmrun merge` and `vlmrun average`: what the stages do, without a recipe, into a folder of one's own."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vlmrun import artifact, back, graph, kinds, locks, logs, store
from vlmrun.artifact import Artifact
from vlmrun.checks import rules
from vlmrun.cli.options import new_parser, output_option, training_option
from vlmrun.config import compose
from vlmrun.config.job import JOB_FILE
from vlmrun.config.schema import AverageStage, MergeStage
from vlmrun.errors import CheckpointError, ConfigError, Problem
from vlmrun.names import MODEL, WEIGHTS
from vlmrun.run import identity

log = logs.get(__name__)

Kind = TypeVar("Kind", MergeStage, AverageStage)
_MERGE = """\
vlmrun merge lora --out merged
"""
_AVERAGE = """\
vlmrun average merge merge2 --weights 0.4 0.6 --check      may they be?
vlmrun average a b --method ties --set density=0.5 --base-model c --out mean
"""
_OURS = {"weights", "lock", "logs", ".weights.part", ".weights.old"}  # what an interrupted attempt may have left


def merge(arguments: list[str]) -> int:
    """`vlmrun merge`: adapters folded into their LLM."""
    about = "Fold LoRA adapters into their LLM; of several, the weighted sum of their changes."
    parser = _parser("merge", about, _MERGE)
    parser.add_argument("artifacts", nargs="+", help="LoRA stages on one base: a name, name-key, key, or folder")
    parser.add_argument("--weights", nargs="+", type=float, help="one per adapter (default: 1 each)")
    parser.add_argument(
        "--base", choices=("trained", "full"), help="of qlora: merge into what it was trained on, or not"
    )
    parser.add_argument("--arithmetic", choices=("fp32", "fp16"), help="fp16: as the original merge scripts")
    options = parser.parse_args(arguments)
    places = [_resolve(Path(options.output), text) for text in options.artifacts]
    names = [str(place) for place in places]
    given = {"weights": options.weights, "base": options.base, "arithmetic": options.arithmetic, "dtype": options.dtype}
    values = _preset("merge", []) | {key: value for key, value in given.items() if value is not None}
    stage = _typed(MergeStage, values | {"init_from": names[0], "adapters": names[1:]})
    graph.require(rules.check_stage(stage, "merge"))
    return _carry_out(stage, places, options)


def average(arguments: list[str]) -> int:
    """`vlmrun average`: one model made of several."""
    parser = _parser("average", "Make one model of several with equal tensors.", _AVERAGE)
    parser.add_argument("artifacts", nargs="+", help="a stage name, name-key, key, or a folder with weights")
    parser.add_argument("--weights", nargs="+", type=float, help="one per model")
    parser.add_argument(
        "--ema", type=float, metavar="D", help="in place of weights: models from old to new, fading by D"
    )
    parser.add_argument("--last", type=int, metavar="K", help="of one training: its last K checkpoints")
    parser.add_argument("--method", default="linear", help="an option of conf/stage/method (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="parameters, such as density=0.5")
    parser.add_argument("--rule", nargs="+", default=[], metavar="REGEX=W,W", help="other weights for some tensors")
    parser.add_argument("--base-model", metavar="ARTIFACT", help="what changes are counted from")
    options = parser.parse_args(arguments)
    root = Path(options.output)
    places = [_resolve(root, text) for text in options.artifacts]
    if options.last is not None:
        places = _last(places, options.last)
    base = None if options.base_model is None else _resolve(root, options.base_model)
    overrides = [f"stage/method@stage.average.method={options.method}"]
    overrides += [f"stage.average.method.{text}" for text in options.set]
    values = _preset("average", overrides) | {
        "models": [str(place) for place in places],
        "weights": options.weights,
        "ema": options.ema,
        "rules": [_rule(text) for text in options.rule],
        "base_model": None if base is None else str(base),
    }
    stage = _typed(AverageStage, values | ({"dtype": options.dtype} if options.dtype else {}))
    graph.require(rules.check_stage(stage, "average"))
    return _carry_out(stage, [*places, *([base] if base else [])], options)


def _parser(verb: str, about: str, examples: str) -> argparse.ArgumentParser:
    parser = new_parser(verb, about, examples)
    parser.add_argument("--out", metavar="DIR", help="where the artifact goes; a finished one is never written over")
    parser.add_argument("--check", action="store_true", help="compare everything, digests too, and write nothing")
    parser.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), help="type of the weights (default: keep)")
    training_option(parser)
    output_option(parser)
    return parser


def _resolve(root: Path, text: str) -> Path:
    """A folder with a model in any format, or a finished artifact by its name."""
    place = Path(text).expanduser()
    stage = (place / JOB_FILE).is_file()  # unfinished unless it is found as an artifact
    if _is_ours(place) or (place.is_dir() and not stage):
        return place.resolve()
    return store.find(root, text).resolve()


def _is_ours(place: Path) -> bool:
    return any((folder / MODEL).is_file() for folder in (place, place / WEIGHTS))


@contextlib.contextmanager
def _native(places: Sequence[Path], beside: Path | None) -> Iterator[dict[str, str]]:
    """Where each source is as a folder of ours; one in another format, a training checkpoint too, is converted first.

    Args:
        beside: the folder for conversions, which are removed afterwards; None: the machine's own for such things.
    """
    with contextlib.ExitStack() as scratch:
        found = {}
        for place in places:
            found[str(place)] = str(place)
            if not _is_ours(place):
                made = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix=".vlmrun-source-", dir=beside)))
                log.info("%s: brought into our own format first", place)
                came_as = store.came_as(place)
                back.convert(place, made / WEIGHTS, "native", back.Conversion(), came_as=came_as, prove=False)
                found[str(place)] = str(made)
        yield found


def _last(places: Sequence[Path], count: int) -> list[Path]:
    """The newest checkpoints of a training, from old to new."""
    if len(places) != 1 or count < 2:
        raise ConfigError(
            "--last takes one training and at least 2", "command line", "vlmrun average pretrain --last 3"
        )
    steps = {
        int(match[1]): path
        for path in (places[0] / "checkpoints").glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name))
    }
    if len(steps) < count:
        raise CheckpointError(
            f"{len(steps)} checkpoints are there, {count} are asked for",
            str(places[0] / "checkpoints"),
            "a smaller --last, or a training that keeps more (save_steps, save_total_limit)",
        )
    return [steps[step] for step in sorted(steps)[-count:]]


def _rule(text: str) -> dict[str, Any]:
    pattern, _, weights = text.rpartition("=")
    try:
        return {"tensors": pattern, "weights": [float(weight) for weight in weights.split(",")]}
    except ValueError:
        raise ConfigError(f"cannot read the rule {text!r}", "command line (--rule)", "such as '^tower=1,0'") from None


def _preset(name: str, overrides: list[str]) -> dict[str, Any]:
    """The stage as conf/stage/NAME.yaml has it, with what overrides change."""
    composed = compose.compose([f"stage=[{name}]", *overrides])
    problems = [problem for problem in composed.problems if not problem.what.endswith("has no value yet")]
    graph.require(problems)
    values: dict[str, Any] = composed.tree["stage"][name]
    return values


def _typed(kind: type[Kind], values: dict[str, Any]) -> Kind:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ConfigError([Problem(_said(detail), "command line", "change the value") for detail in found]) from error


def _said(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where} = {detail['input']!r}: {detail['msg'].lower()}"


def _carry_out(stage: MergeStage | AverageStage, places: list[Path], options: argparse.Namespace) -> int:
    """Checks only, or makes the artifact."""
    logs.setup()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for place in places:
        store.require_trusted(Path(options.output), place, asked=options.came_as == "training")
    if options.out is None and not options.check:
        raise ConfigError("--out is missing", "command line", "--out FOLDER, or --check to compare without writing")
    if options.check:
        _verify(places)
        with _native(places, None) as parents:
            sys.stdout.write(f"ok: {back.compatible(stage, parents)}\n")
        return 0
    folder = Path(options.out).expanduser().resolve()
    _require_free(folder)
    with locks.lock(folder, wait=False, say=log.info), _native(places, folder) as parents:
        result = back.make(stage, parents, folder)
        found = [parent for place in places if (parent := artifact.parent(place)) is not None]
        made = Artifact(
            name=folder.name,
            kind=stage.kind,
            key=_key(stage, [parent.key for parent in found]),
            run="command line",
            created=artifact.now(),
            parents=found,
            summary={**result.summary, "sources": ", ".join(map(str, places))},
            environment=artifact.environment(),
            files=artifact.describe_files(folder, result.roots),
        )
        artifact.write_text(folder / artifact.NAME, made.model_dump_json(indent=1) + "\n")
    log.info("made %s; where it came from: vlmrun ls %s", os.path.relpath(folder), os.path.relpath(folder))
    return 0


def _key(stage: Any, parents: list[str]) -> str:
    """As a stage's in a run: its values and its parents' keys."""
    content = {"version": kinds.of(stage).version, "stage": identity.stable(stage), "parents": parents}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _verify(places: list[Path]) -> None:
    """Reads every file of those sources that are artifacts again."""
    problems = list(_damage(places))
    if problems:
        raise CheckpointError(problems)


def _damage(places: list[Path]) -> Iterator[Problem]:
    for place in places:
        try:
            found = artifact.read(place)
            if found is not None:
                artifact.verify(place, found, thorough=True)
        except CheckpointError as error:
            yield from error.problems


def _require_free(folder: Path) -> None:
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = sorted(name for name in there if name not in _OURS and not name.startswith(".vlmrun-source-"))
    if foreign:
        raise ConfigError(f"{folder} holds {', '.join(foreign[:3])}", "command line (--out)", "give a new folder")
