"""`vlmrun data convert`: between the JSON of LLaVA and of others, Parquet files, and tar shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vlmrun import back, logs
from vlmrun.cli.options import new_parser
from vlmrun.data.shards import metadata
from vlmrun.errors import ConfigError

_EXAMPLES = """\
vlmrun data convert train.json minicpm.json --to minicpm
vlmrun data convert train.json shards --to wds --images images
vlmrun data convert shards unpacked --from wds
vlmrun data convert messages.jsonl train.json --from openai
"""
_OTHER = {"minicpm": "llava", "llava": "minicpm"}
_SHARDS = ("wds", "energon")
_OTHERS = ("openai", "sharegpt", "parquet")
_OF_SHARDS = ("images", "pattern", "max_count", "writers", "on_error")

log = logs.get(__name__)


def main(arguments: list[str]) -> int:
    """Converts a data set and says how many records it has."""
    options = _parser().parse_args(arguments)
    _check(options)
    source, output = options.source.expanduser(), options.output.expanduser()
    if options.came_as == "wds":
        n_records = back.unpack_shards(source, output)
        log.info("%s: %s records and their images", output, f"{n_records:,}")
    elif options.to in _SHARDS:
        _to_shards(source, output, options)
    else:
        write_as = options.to or "llava"
        n_records = back.convert_data(source, output, read_as=options.came_as or _OTHER[write_as], write_as=write_as)
        told = "as the rows name their keys" if options.came_as == "parquet" else f"of format {write_as}"
        log.info("%s: %d records %s", output, n_records, told)
    return 0


def _parser() -> argparse.ArgumentParser:
    about = "LLaVA JSON from other formats, or to MiniCPM-V JSON or tar shards."
    parser = new_parser("data convert", about, _EXAMPLES)
    parser.add_argument("source", type=Path, help="annotation file; with --from wds a folder of shards")
    parser.add_argument("output", type=Path, help="file to write; of shards, and with --from wds, a new folder")
    parser.add_argument("--to", choices=[*_OTHER, *_SHARDS], help="format of the output")
    parser.add_argument("--from", dest="came_as", choices=["wds", *_OTHERS], help="format of the source")
    shards = parser.add_argument_group("shards")
    shards.add_argument("--images", type=Path, help="folder that image names start from (default: the file's own)")
    shards.add_argument("--pattern", help="names of shards (default: pretrain-%%d.tar); %%06d pads with zeros")
    shards.add_argument("--max-count", type=_at_least_one, help="samples of a shard (default: 10000)")
    shards.add_argument("--writers", type=_at_least_one, help="processes that write (default: 1)")
    shards.add_argument("--on-error", choices=["fail", "skip"], help="skip: bad records are left out and listed")
    energon = parser.add_argument_group("energon")
    energon.add_argument("--split", help="shares of train, val and test (default: 9,1,0)")
    energon.add_argument("--energon-version", type=int, choices=[4, 7], help="of the metadata (default: 7)")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _check(options: argparse.Namespace) -> None:
    """Refuses options that would have no effect."""
    if options.to is None and options.came_as is None:
        raise ConfigError("one of --to FORMAT and --from FORMAT is needed", "command line", "--to wds")
    alone = options.came_as in ("wds", "parquet")
    if options.came_as is not None and options.to in ((*_OTHER, *_SHARDS) if alone else _SHARDS):
        fix = "leave --to out" if alone else "convert to llava first, and that to shards"
        raise ConfigError(f"--from {options.came_as} and --to {options.to} exclude each other", "command line", fix)
    given = {
        "wds, energon": [name for name in _OF_SHARDS if getattr(options, name) is not None],
        "energon": [name for name in ("split", "energon_version") if getattr(options, name) is not None],
    }
    for formats, names in given.items():
        if names and options.to not in formats.split(", "):
            option = "--" + names[0].replace("_", "-")
            raise ConfigError(f"{option} is of --to {formats}", "command line", f"leave {option} out")


def _to_shards(source: Path, output: Path, options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("pattern", "max_count", "writers")}
    layout = {name: value for name, value in given.items() if value is not None}
    shares = metadata.shares(options.split or "9,1,0")

    def finish(folder: Path) -> None:
        if options.to == "energon":
            parts = metadata.write(folder, options.energon_version or 7, shares)
            log.info("split: %s", ", ".join(f"{part} {len(shards)} shard(s)" for part, shards in parts.items()))

    images = options.images.expanduser() if options.images else None
    _tell(output, back.write_shards(
        source, output, layout, images=images, on_error=options.on_error or "fail", finish=finish
    ), options.to)  # fmt: skip


def _tell(output: Path, written: Any, wanted: str) -> None:
    log.info("%s: %s samples in %d shard(s)", output, f"{written.n_samples:,}", written.n_shards)
    if written.n_skipped:
        log.warning("%d records are left out: %s", written.n_skipped, output / "skipped.jsonl")
    if written.n_longer and wanted == "energon":
        log.warning(
            "%s samples have more than one question: energon's field map names the first, format wds reads all",
            f"{written.n_longer:,}",
        )
