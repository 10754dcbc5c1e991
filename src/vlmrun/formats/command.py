"""`vlmrun convert`: the command around `convert` and `compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmrun.config.paths import locate
from vlmrun.errors import CheckpointError, ConfigError, Problem
from vlmrun.formats.base import How
from vlmrun.formats.convert import compare, convert
from vlmrun.weights.reader import DTYPES

_SHOWN = 20


def main(source: Path, destination: Path, options: argparse.Namespace) -> int:
    """Converts or compares, and says on stdout what came of it.

    Raises:
        CheckpointError: whatever is in the way, or every difference that `--check` found.
    """
    how = How(
        base=None if options.base is None else _found(options.base),
        tower=None if options.tower is None else locate(options.tower),
        template=options.template,
        dtype=DTYPES.get(options.dtype),
        tp=options.tp,
        skip=tuple(name for name in options.skip.split(",") if name),
    )
    _check_options(options)
    if options.check:
        return _check(source, destination, how)
    summary = convert(
        source,
        destination,
        options.to,
        how,
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


def _check(source: Path, destination: Path, how: How) -> int:
    problems = compare(source, destination, how)
    if problems:
        more = [Problem(f"and {len(problems) - _SHOWN} more")] if len(problems) > _SHOWN else []
        raise CheckpointError([*problems[:_SHOWN], *more])
    sys.stdout.write(f"{source} and {destination} hold the same model\n")
    return 0


def _check_options(options: argparse.Namespace) -> None:
    wrong = []
    if options.tp != 1 and options.to != "megatron":
        wrong.append(Problem("--tp is of --to megatron", "command line", "leave it out"))
    if options.skip and options.to not in ("bnb4", "bnb8"):
        wrong.append(Problem("--skip is of --to bnb4 and bnb8", "command line", "leave it out"))
    if wrong:
        raise ConfigError(wrong)


def _found(name: str) -> Path:
    """A folder or file, or a hub id that is in the local cache."""
    path = Path(name).expanduser()
    return path if path.exists() else locate(name)


def _progress(done: int, total: int, what: str) -> None:
    sys.stderr.write(f"\r\x1b[K{done}/{total} {what[:60]}" + ("\n" if done == total else ""))


def _quiet(done: int, total: int, what: str) -> None:
    pass
