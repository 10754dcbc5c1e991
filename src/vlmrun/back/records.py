"""The door to data: samples as a model sees them, problems of data sets, and data in other formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmrun.config.job import StageJob
from vlmrun.data.findings import Finding, Tally

if TYPE_CHECKING:
    from vlmrun.data.prepare.write_shards import Written
    from vlmrun.inspect.sizes import Sizes


def show_sample(job: StageJob, index: int, sizes: Sizes) -> dict[str, Any]:
    """One sample of a train stage as the model sees it; docs/guides/data.md names the keys.

    Raises:
        DataError: when there is no such record, or it cannot be used.
    """
    from vlmrun.inspect import sample

    return sample.show(job, index, sizes)


def lint_data(
    job: StageJob, name: str, sizes: Sizes, limit: int | None, decode: int | None, tally: Tally
) -> Iterator[Finding]:
    """Every problem of one of a stage's data sets.

    Args:
        limit, decode: records looked at and images decoded; None: all.
        tally: given the number of records at the end.

    Raises:
        CheckpointError: when there is no tokenizer.
    """
    from dataclasses import replace

    from vlmrun.data import lint
    from vlmrun.inspect import sample

    rules = replace(sample.rules(job, name, sizes), limit=limit, n_decoded=decode)
    return lint.lint(Path(job.data[name].annotations), rules, tally)


def lint_file(path: Path, options: Mapping[str, Any], tally: Tally) -> Iterator[Finding]:
    """Every problem of an annotation file that belongs to no run.

    Args:
        options: what `vlmrun data lint FILE` was given, by the names of its arguments.

    Raises:
        ConfigError: for an unknown template.
        CheckpointError: when there is no tokenizer where `options` says.
    """
    from vlmrun.data import lint

    if options["tokenizer"] is None and options["template"] is None:
        rules = lint.rules_of(options)
    else:  # a tokenizer loads transformers
        from vlmrun.inspect import sample

        rules = sample.rules_of_file(options)
    return lint.lint(path, rules, tally)


def convert_data(source: Path, output: Path, *, read_as: str, write_as: str) -> int:
    """Writes annotations in another data format and returns how many records.

    Raises:
        DataError: listing the records that cannot be used; nothing is written then.
    """
    from vlmrun.data.prepare import convert

    return convert.convert(source, output, read_as=read_as, write_as=write_as)


def write_shards(
    source: Path,
    folder: Path,
    layout: Mapping[str, Any],
    *,
    images: Path | None,
    on_error: Literal["fail", "skip"],
    finish: Callable[[Path], None],
) -> Written:
    """Writes annotations and images as tar shards.

    Args:
        layout: fields of `data.prepare.write_shards.Layout` that differ from its own values.

    Raises:
        DataError: listing the records that cannot be written; nothing is left behind then.
    """
    from vlmrun.data.prepare import write_shards

    return write_shards.write(
        source, folder, write_shards.Layout(**layout), images=images, on_error=on_error, finish=finish
    )


def unpack_shards(folder: Path, destination: Path) -> int:
    """Writes the samples of tar shards as annotations and images and returns how many.

    Raises:
        DataError: for a damaged shard or a key that is used twice.
    """
    from vlmrun.data.prepare import unpack_shards

    return unpack_shards.unpack(folder, destination)


def scienceqa(base: Path, split: str, prompt_format: str, *, escape_newlines: bool) -> list[dict[str, Any]]:
    """Every problem of a split of ScienceQA as a LLaVA record.

    Raises:
        DataError: for an unknown split or prompt format, or files that are not ScienceQA's.
    """
    from vlmrun.data.prepare import scienceqa

    return scienceqa.convert(base, split, prompt_format, escape_newlines=escape_newlines)
