"""The one door from what composes, checks and plans to what loads torch.

Every function imports what it calls when it is called, so importing this module costs nothing and a command that never
comes here never loads torch. No other module may import the back half by a string; `pyproject.toml` lists every edge
that leaves here, each with its reason, and `tests/unit/test_layout.py` counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from vlmrun import build, kinds, store
from vlmrun.arch.sizes import Shapes
from vlmrun.config.job import StageJob
from vlmrun.config.schema import AverageStage, Kept, MergeStage, ModelConfig
from vlmrun.data.findings import Finding, Tally
from vlmrun.errors import Problem
from vlmrun.outcome import Result

if TYPE_CHECKING:
    import argparse
    from multiprocessing.connection import Connection

    from vlmrun.data.prepare.write_shards import Written
    from vlmrun.formats.base import How
    from vlmrun.inspect.sizes import Sizes
    from vlmrun.serve.messages import Plan

Progress = Callable[[int, int, str], None]  # tensors done, tensors in all, the name of the last one


class Stage(Protocol):
    """A module of `stages/`, or of a plugin: the back half of a kind of stage."""

    def execute(self, job: StageJob) -> Result | None:
        """Does the work of one rank; a result on rank 0."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion of weights needs besides its two folders.

    Attributes:
        base: the LLM or the model that an adapter, a projector or a delta belongs to.
        tower: the vision tower, when the source names one that is not here.
        template: built-in template, for formats that do not say which.
        dtype: of all tensors.
        tp: tensor-parallel ranks of a Megatron folder.
        skip: names of linear layers that are not quantized.
    """

    base: Path | None = None
    tower: Path | None = None
    template: str | None = None
    dtype: Kept = "keep"
    tp: int = 1
    skip: tuple[str, ...] = ()


def stage(job: StageJob) -> Stage:
    """What executes this job's kind of stage, with everything loaded that it needs."""
    if job.parents:  # models that it starts from
        know_checkpoints()
    return cast(Stage, build.module(kinds.of(job.stage).back, f"stage.{job.name}.kind"))


def make(stage: MergeStage | AverageStage, sources: Mapping[str, str], folder: Path) -> Result:
    """Writes `folder/weights` as a merge or an average of models.

    Args:
        sources: the native folder of every reference in `stage`.

    Raises:
        CheckpointError: when a source is damaged or the sources do not fit together.
    """
    from vlmrun.stages import average, merge

    if isinstance(stage, MergeStage):
        return merge.make(stage, sources, folder)
    return average.make(stage, sources, folder)


def compatible(stage: MergeStage | AverageStage, sources: Mapping[str, str]) -> str:
    """Compares the sources of a merge or an average without writing; what was compared, in words.

    Raises:
        CheckpointError: listing what does not fit.
    """
    from vlmrun.stages import average, merge

    return merge.check(stage, sources) if isinstance(stage, MergeStage) else average.check(stage, sources)


def convert(  # noqa: PLR0913 -- two folders, two formats, and what else was given
    source: Path,
    destination: Path,
    to: str,
    options: Conversion,
    *,
    came_as: str | None = None,
    prove: bool = True,
    report: Progress = lambda done, total, name: None,
) -> dict[str, Any]:
    """Writes a model in another format; `formats.convert.convert` gives the keys of what is returned.

    Raises:
        CheckpointError: when the source is damaged, the format cannot express it, or the proof fails.
    """
    from vlmrun.formats.convert import convert

    how = _how(options)
    return convert(source, destination, to, how, came_as=came_as, prove=prove, report=report)


def compare(first: Path, second: Path, options: Conversion) -> list[Problem]:
    """Every difference between the tensors of two models, in whatever formats they are."""
    from vlmrun.formats.convert import compare

    return compare(first, second, _how(options))


def chat(model: Path, options: argparse.Namespace) -> int:
    """Answers on stdout, or talks until the input ends; returns an exit code.

    Args:
        model: folder of a model, or of a training checkpoint.
        options: what `vlmrun chat` was given.

    Raises:
        CheckpointError: when there is no usable model in the folder.
        DataError: when an image, the history or the file of questions cannot be used.
    """
    from vlmrun.serve import chat

    know_checkpoints()
    return chat.main(model, options)


def serve(
    options: argparse.Namespace, models: Sequence[tuple[str, Path]], aliases: Mapping[str, str], key: str | None
) -> int:
    """Serves named models until told to stop, to clients that send `key`; gives an exit code. Workers load torch."""
    from vlmrun.serve import start

    return start.main(options, models, aliases, key, serve_worker)


def serve_worker(pipe: Connection, plan: Plan) -> None:
    """The work of a process of `vlmrun serve`: loads the plan's models and answers until the pipe closes."""
    from vlmrun.serve import worker

    if any(store.is_checkpoint(Path(folder)) for _, folder in plan.models):
        know_checkpoints()  # loads DeepSpeed, which takes seconds
    worker.main(pipe, plan)


def shapes_of(model: ModelConfig, llm: dict[str, Any], tower: dict[str, Any], n_added: int) -> Shapes:
    """Sizes of a model of any family, read off its modules, which are made without weights.

    Args:
        llm, tower: the parts' config.json.
        n_added: tokens added to the vocabulary.
    """
    from vlmrun.plan import meta

    return meta.shapes_of(model, llm, tower, n_added)


def show_sample(job: StageJob, index: int, sizes: Sizes) -> dict[str, Any]:
    """One sample of a train stage as the model sees it; docs/guides/data.md names the keys.

    Raises:
        DataError: when there is no such record, or it cannot be used.
    """
    from vlmrun.inspect import sample

    return sample.show(job, index, sizes)


def lint_data(job: StageJob, name: str, sizes: Sizes, limit: int | None, tally: Tally) -> Iterator[Finding]:
    """Every problem of one of a stage's data sets.

    Args:
        limit: records looked at; None: all.
        tally: given the number of records at the end.

    Raises:
        CheckpointError: when there is no tokenizer.
    """
    from dataclasses import replace

    from vlmrun.data import lint
    from vlmrun.inspect import sample

    rules = replace(sample.rules(job, name, sizes), limit=limit)
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
        rules = lint.Rules(**{name: options[name] for name in lint.OF_FILE})
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


def training_args(path: Path) -> dict[str, Any]:
    """The values in a training_args.bin; no class that it names is imported.

    Raises:
        CheckpointError: when it is no such file.
    """
    from vlmrun.formats.training_args import read

    return read(path)


def _how(options: Conversion) -> How:
    from vlmrun.formats.base import How
    from vlmrun.weights.reader import DTYPES

    know_checkpoints()
    dtype = DTYPES.get(options.dtype)  # None: keep
    return How(options.base, options.tower, options.template, dtype, options.tp, options.skip)


def know_checkpoints() -> None:
    """Makes training checkpoints a format that models are read from: the trainer's, which `formats` cannot import."""
    from vlmrun.formats import registry
    from vlmrun.train.export import format

    registry.register("training", format)
