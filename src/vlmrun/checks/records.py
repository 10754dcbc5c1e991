"""Rules about the records themselves: annotation files of a moderate size are read before a run, as training would."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlmrun.checks import schedules
from vlmrun.checks.table import Rule
from vlmrun.config import derived
from vlmrun.config.schema import BenchmarkConfig, DataConfig, Reading, RunConfig, TrainStage
from vlmrun.data import drawn
from vlmrun.data.formats import reader
from vlmrun.data.sample import Rejected
from vlmrun.errors import ConfigError, DataError, Problem

MOST_BYTES = 1 << 25  # of one annotation file; reading it takes some seconds
_SHOWN = 3


@dataclass(frozen=True)
class Counted:
    """What an annotation file holds: usable records, those with an image, unusable ones, the first few of those."""

    usable: int
    with_images: int
    rejected: int
    first: tuple[Rejected, ...]


def unread(run: RunConfig) -> list[str]:
    """Data that `check` has not read, each with the command that does."""
    said = []
    for name, data in _read_by(run).items():
        file = Path(data.annotations).expanduser()
        if data.prepare is not None or isinstance(data, BenchmarkConfig):
            continue
        if derived.in_shards(data):
            said.append(f"data.{name}: samples in shards are not read here; vlmrun data lint OVERRIDES reads them")
        elif file.is_file() and file.stat().st_size > MOST_BYTES:
            size = f"{file.stat().st_size / 2**20:,.0f} MiB"
            said.append(
                f"data.{name}: the records of {data.annotations} ({size}) are not read here, {MOST_BYTES >> 20} MiB at "
                "most are; vlmrun data lint OVERRIDES reads them"
            )
    return said


def _records(run: RunConfig) -> Iterator[Problem]:
    for name, data in _read_by(run).items():
        try:
            found = _counted(data, as_it_is=_as_it_is(run, name))
        except DataError as error:
            first = error.problems[0]
            yield Problem(f"{first.what}: {first.where}", f"data.{name}.annotations", first.fix or "look at the file")
            continue
        if found is None:
            continue
        if found.usable == 0 and found.rejected == 0:
            yield Problem(f"{data.annotations} has no record", f"data.{name}.annotations", "a file that has records")
        elif _stops(data, found):
            total = found.usable + found.rejected
            for rejected in found.first:
                yield Problem(rejected.what, f"data.{name}: {rejected.problem.where}", rejected.fix)
            yield Problem(
                f"{found.rejected:,} of {total:,} records of {data.annotations} cannot be used",
                f"data.{name}",
                f"{_lint(data)} lists them; data.{name}.on_error=skip leaves them out",
            )


def _stops(data: DataConfig, found: Counted) -> bool:
    """Whether records that cannot be used stop the run."""
    return found.rejected > 0 and (data.on_error == "fail" or found.usable == 0)


def _lint(data: DataConfig) -> str:
    """The command that lists what is wrong with the records of a data entry."""
    ignored = [word for key in data.ignore_keys for word in ("--ignore-key", key)]
    return shlex.join(["vlmrun", "data", "lint", data.annotations, "--format", data.format, *ignored])


def _length(stage: TrainStage, run: RunConfig, where: str) -> Iterator[Problem]:
    """Whether the samples fill a batch, outlast the warm-up, and have images for a part that needs them."""
    counted = _all(stage, run)
    if counted is None:
        return
    if any(_stops(run.data[name], found) for name, found in zip(stage.data, counted, strict=True)):
        return  # too few, because records are wrong: which is what stops the run, and is said of each
    seeing = [part for part in ("tower", "connector") if getattr(stage.tune, part) != "freeze"]
    if seeing and not any(found.with_images for found in counted):
        yield Problem(
            f"the {' and the '.join(seeing)} cannot learn: no record has an image",
            f"{where}.data",
            f"{where}.tune.{seeing[0]}=freeze, or data with images",
        )
    if stage.packing is not None or stage.order is not None:  # batches of rows, or of another loader
        return
    weights = stage.data_weights or [1.0] * len(counted)
    n = sum(round(n * weight) for n, weight in zip(_taken(stage, counted), weights, strict=False))
    steps = derived.steps(stage, n)
    if steps == 0:
        passes = "" if stage.epochs is None else f" over {stage.epochs:g} epoch(s)"
        most = int(n * (stage.epochs or 1))
        fix = f"{where}.global_batch={most} or less (and micro_batch), more {where}.epochs, or more data"
        yield Problem(
            f"{n:,} samples{passes} do not fill one global batch of {stage.global_batch:,}",
            f"{where}.global_batch",
            fix if most else "data with records",
        )
    elif (stage.optim.warmup_ratio is None) != (stage.optim.warmup_steps is None):
        given = "warmup_ratio" if stage.optim.warmup_steps is None else "warmup_steps"
        if derived.warmup_steps(stage.optim, steps) >= steps:
            yield Problem(
                f"all {steps:,} update(s) that {n:,} samples make are warm-up, and the first has rate 0",
                f"{where}.optim.{given}",
                f"more data or epochs, a smaller global_batch, or {where}.optim.{given}=0",
            )
        elif stage.max_steps is None:  # else a problem without data
            yield from schedules.unfit(stage.optim, steps, where)


def usable(stage: TrainStage, run: RunConfig) -> dict[str, int] | None:
    """Usable records of a stage's data, by name; None where some of it is not read here."""
    counted = _all(stage, run)
    return None if counted is None else dict(zip(stage.data, _taken(stage, counted), strict=True))


def _taken(stage: TrainStage, counted: Sequence[Counted]) -> list[int]:
    """Records of each source that are trained on: the first `max_samples` of all."""
    return derived.first_of([found.usable for found in counted], stage.max_samples)


def _all(stage: TrainStage, run: RunConfig) -> list[Counted] | None:
    found = []
    for name in stage.data:
        data = run.data.get(name)
        try:
            one = None if data is None else _counted(data, as_it_is=stage.compat.records)
        except DataError:  # a problem of its own
            return None
        if one is None:
            return None
        found.append(one)
    return found


def _read_by(run: RunConfig) -> dict[str, DataConfig]:
    """Data that a selected stage reads."""
    stages = [each for name, each in run.stage.items() if not run.only or name in run.only]
    used = {name for each in stages if isinstance(each, Reading) for name in derived.sources(each)}
    return {name: data for name, data in run.data.items() if name in used}


def _as_it_is(run: RunConfig, name: str) -> bool:
    """Whether every stage that trains on the data takes records as upstream did."""
    stages = [each for each in run.stage.values() if isinstance(each, TrainStage) and name in each.data]
    return bool(stages) and all(each.compat.records for each in stages)


def _counted(data: DataConfig, *, as_it_is: bool) -> Counted | None:
    """The records of an annotation file, or of shapes to be drawn; None where they are not read here."""
    if (made := drawn.n_records(data)) is not None:
        return Counted(*made, 0, ())
    file = Path(data.annotations).expanduser()
    other = data.prepare is not None or isinstance(data, BenchmarkConfig) or derived.in_shards(data)
    if other or not file.is_file() or file.stat().st_size > MOST_BYTES:
        return None
    about = file.stat()
    try:
        as_it_is = as_it_is and data.format == "llava"
        return _count(file, data.format, as_it_is, tuple(data.ignore_keys), about.st_mtime_ns, about.st_size)
    except ConfigError:  # of its format, which is a problem of its own
        return None


@lru_cache(maxsize=64)
def _count(file: Path, format: str, as_it_is: bool, ignore_keys: tuple[str, ...], _mtime: int, _size: int) -> Counted:
    """Reads a file once for all points of a sweep; another time or size is another file."""
    usable = with_images = 0
    rejected: list[Rejected] = []
    for record in reader(format, as_it_is=as_it_is, ignore_keys=ignore_keys)(file):
        if isinstance(record, Rejected):
            rejected.append(record)
        else:
            usable += 1
            with_images += bool(record.images)
    return Counted(usable, with_images, len(rejected), tuple(rejected[:_SHOWN]))


# What a run itself finds out once it reads its data, and `check` before.
CONTENT = (
    Rule("records", "Annotation files of up to 32 MiB hold usable records, and only those unless on_error is skip.",
         ("data.*.annotations", "data.*.on_error"), _records, here=True),
)  # fmt: skip
RULES = (
    Rule("enough-data", "The samples fill a global batch, outlast the warm-up, and have images where a part that sees "
         "is trained.", ("stage.*.data", "stage.*.global_batch", "stage.*.epochs", "stage.*.optim"), _length,
         of=(TrainStage,), here=True, yields_to=("even-batch",)),
)  # fmt: skip
