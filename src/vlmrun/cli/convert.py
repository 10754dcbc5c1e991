"""`vlmrun convert`: a model in another format, or the comparison of two models."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vlmrun import back, graph, store
from vlmrun.back import Conversion
from vlmrun.checks import rules
from vlmrun.cli.options import at_least_one, output_option
from vlmrun.config.paths import locate
from vlmrun.config.schema import ConvertStage
from vlmrun.errors import CheckpointError, ConfigError, Problem

_SHOWN = 20


def main(arguments: list[str]) -> int:
    """Converts or compares, and says on stdout what came of it.

    Raises:
        ConfigError: for options that belong to another format.
        CheckpointError: whatever is in the way, or every difference that `--check` found.
    """
    options = _parser().parse_args(arguments)
    graph.require(rules.check_stage(_stage(options), "convert"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    source, destination = Path(options.source).expanduser(), Path(options.destination).expanduser()
    if not source.exists():
        source = store.find(Path(options.output), options.source)
    asked = options.came_as == "training"
    for folder in (source, destination):
        store.require_trusted(Path(options.output), folder, asked=asked)
    options.came_as = options.came_as or store.came_as(source)
    settings = Conversion(
        base=None if options.base is None else _found(options.base),
        tower=None if options.tower is None else locate(options.tower),
        template=options.template,
        dtype=options.dtype,
        tp=options.tp,
        skip=tuple(name for name in options.skip.split(",") if name),
        fits=options.fits,
        adapter=not options.without_adapter,
    )
    if options.check:
        return _compare(source, destination, settings, options.came_as)
    return _convert(source, destination, settings, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vlmrun convert",
        description="Write a model in another format. The source's format is found out from its content.",
        epilog="formats: docs/guides/convert.md",
    )
    parser.add_argument("source", help="a stage, an artifact, a training checkpoint, or a folder or file of a model")
    parser.add_argument("destination", help="a folder that is not there yet; with --check the model to compare with")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", metavar="FORMAT", help="the format to write, such as hf_llava")
    way.add_argument("--check", action="store_true", help="write nothing; list every tensor that differs")
    parser.add_argument("--from", dest="came_as", help="the source's format, if it is taken for another")
    parser.add_argument("--base", help="the LLM or model that an adapter, a projector or a delta belongs to")
    parser.add_argument("--tower", help="folder of the vision tower, if the source names one that is not here")
    parser.add_argument("--template", help="a built-in template, if the source's format does not say which")
    parser.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), default="keep")
    parser.add_argument("--tp", type=at_least_one, default=1, help="megatron: tensor-parallel ranks (1, 2, 4, 8)")
    parser.add_argument("--skip", default="", help="bnb4, bnb8: names of layers left as they are, with commas between")
    parser.add_argument("--for", dest="fits", choices=("hf_llava", "llm"), help="peft: the model it is for")
    parser.add_argument("--without-adapter", action="store_true", help="leave an adapter out: what --to peft is put on")
    parser.add_argument("--no-proof", action="store_true", help="do not compare with plain transformers")
    output_option(parser)
    return parser


def _convert(source: Path, destination: Path, settings: Conversion, options: argparse.Namespace) -> int:
    summary = back.convert(
        source,
        destination,
        options.to,
        settings,
        came_as=options.came_as,
        prove=not options.no_proof,
        report=_progress if sys.stderr.isatty() else _quiet,
    )
    for note in summary["notes"]:
        sys.stderr.write(f"note: {note}\n")
    sys.stdout.write(f"{destination}: {summary['tensors']} tensors, from {summary['from']} to {summary['to']}\n")
    if "proof" in summary:
        proof = summary["proof"]
        sys.stdout.write(
            f"proof: plain transformers gives equal pixels ({proof['pixels']}), prompt ids ({proof['prompt_ids']}) and "
            f"answer ({proof['generated']} ids); logits are {proof['logits_apart']:.2g} apart\n"
        )
    return 0


def _compare(source: Path, destination: Path, settings: Conversion, came_as: str | None) -> int:
    problems = back.compare(source, destination, settings, (came_as, store.came_as(destination)))
    if problems:
        more = [Problem(f"and {len(problems) - _SHOWN} more")] if len(problems) > _SHOWN else []
        raise CheckpointError([*problems[:_SHOWN], *more])
    sys.stdout.write(f"{source} and {destination} hold the same model\n")
    return 0


def _stage(options: argparse.Namespace) -> ConvertStage:
    """The stage that would do the same, as far as the rules of a stage look at it."""
    if options.fits is not None and options.to != "peft":
        raise ConfigError(f"--for {options.fits} is of --to peft", "command line", "leave it out")
    looked_at = {"to": options.to or "native", "tp": options.tp, "skip": options.skip, "base_model": options.base}
    return ConvertStage.model_construct(kind="convert", **looked_at)


def _found(name: str) -> Path:
    """A folder or file, or a hub id that is in the local cache."""
    path = Path(name).expanduser()
    return path if path.exists() else locate(name)


def _progress(done: int, total: int, what: str) -> None:
    sys.stderr.write(f"\r\x1b[K{done}/{total} {what[:60]}" + ("\n" if done == total else ""))


def _quiet(done: int, total: int, what: str) -> None:
    pass
