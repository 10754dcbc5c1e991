"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from vlmrun.config import derived
from vlmrun.config.schema import TrainStage
from vlmrun.plan import memory, time
from vlmrun.plan import run as planning
from vlmrun.plan.features import DISK_BYTES_PER_SECOND
from vlmrun.plan.stage import OtherPlan, TrainPlan
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

_GIB = 2**30


def show(found: planning.Plan, asked: planning.Options, stream: IO[str]) -> None:
    """The whole plan of a run."""
    trained = [one for one in found.stages if isinstance(one, TrainPlan)]
    others = [one for one in found.stages if isinstance(one, OtherPlan)]
    tables.write(_overview(found, trained), stream)
    stream.write(f"{totals(found)}\n")
    if trained:
        stream.write("\n")
        tables.write(_terms(trained), stream)
        stream.write("\n")
        tables.write(_parts(trained), stream)
    if others:
        stream.write("\n")
        tables.write(_others(others, found.run.hardware.gpu), stream)
    for one in trained:
        _advise(one, stream)
        _say_features(one, stream)
    stream.write("\nassumed:\n")
    for line in assumptions(found, asked):
        stream.write(f"  {line}\n")


def totals(found: planning.Plan) -> str:
    """All stages together, in a line."""
    trained = [one for one in found.stages if isinstance(one, TrainPlan)]
    known = [one.duration for one in trained if one.duration is not None]
    disk = sum(one.disk.checkpoints + one.disk.artifact for one in trained)
    disk += sum(one.needs.disk for one in found.stages if isinstance(one, OtherPlan))
    hours, gpu_hours, cost = (sum(getattr(work, name) for work in known) for name in ("hours", "gpu_hours", "cost"))
    said = f"all stages: {_hours(hours)} hours of training, {gpu_hours:,.1f} GPU hours"
    said += f", ${cost:,.0f}" if cost else ""
    missing = len(trained) - len(known)
    said += f" (without {missing} of {len(trained)}, whose number of records is not known)" if missing else ""
    return f"{said}; {_size(disk)} of disk"


def compare(points: Sequence[tuple[str, planning.Plan]], stream: IO[str]) -> None:
    """A line for each train stage of each point of a sweep."""
    lines = [
        [own, *_line(one)] for own, found in points for one in found.stages if isinstance(one, TrainPlan)
    ]  # fmt: skip
    tables.write(Grid("", [Column("point"), *_COLUMNS], lines), stream)


_COLUMNS = (
    Column("stage"),
    *(Column(title, right=True) for title in ("trained", "GiB per GPU", "of", "fits", "micro batch", "largest")),
    *(
        Column(title, right=True)
        for title in ("steps", "tokens", "of images", "EFLOP", "hours", "GPU hours", "cost", "disk")
    ),
)


def _overview(found: planning.Plan, trained: Sequence[TrainPlan]) -> Grid:
    hardware = found.run.hardware
    title = f"{found.run.name} on {derived.ranks(hardware)} x {hardware.gpu}, {hardware.precision}, "
    title += f"attention {hardware.attention}"
    shared = {"layers": hardware.tensor_parallel, "sequences": hardware.sequence_parallel}
    title += "".join(f", {what} shared by {n}" for what, n in shared.items() if n > 1)
    return Grid(title, _COLUMNS, [_line(one) for one in trained])


def _line(one: TrainPlan) -> list[str]:
    work = one.duration
    numbers = ["?"] * 7
    if work is not None:
        cost = f"${work.cost:,.0f}" if work.cost else ""
        hours = (_hours(work.hours), f"{work.gpu_hours:,.1f}")
        tokens = (_count(work.tokens), _count(work.image_tokens))
        numbers = [f"{work.steps:,}", *tokens, f"{work.flops / 1e18:,.3g}", *hours, cost]
    fits = {True: "yes", False: "NO", None: ""}[one.fits]
    room = "" if one.capacity is None else f"{one.capacity / _GIB:.0f}"
    largest = str(one.fitting) if one.fitting else ("none" if one.capacity is not None else "")
    trained = _count(sum(part.trained for part in one.counts.values()))
    disk = _size(one.disk.checkpoints + one.disk.artifact)
    return [one.name, trained, _gib(one.memory.total), room, fits, str(one.batch.sequences), largest, *numbers, disk]


def _terms(trained: Sequence[TrainPlan]) -> Grid:
    """Memory by term, a column for each stage."""
    names = list(dict.fromkeys(name for one in trained for name in one.memory.terms))
    lines = [[name, *(_gib(one.memory.terms.get(name, 0)) for one in trained)] for name in names]
    lines.append(["all tensors", *(_gib(one.memory.tensors) for one in trained)])
    lines.append(["CUDA context, fragmentation", *(_gib(one.memory.allowance) for one in trained)])
    lines.append(["in host memory, per rank", *(_gib(one.memory.host) for one in trained)])
    lines.append(["on a drive, per rank", *(_gib(one.memory.drive) for one in trained)])
    lines.append(["fullest moment", *(one.memory.moment for one in trained)])
    others = dict.fromkeys(name for one in trained for name in one.memory.elsewhere)
    lines += [
        [f"at another moment, {name}", *(_gib(one.memory.elsewhere.get(name, 0)) for one in trained)] for name in others
    ]
    lines = [line for line in lines if any(line[1:])]
    return Grid("GiB per GPU", [Column("term"), *(Column(one.name, right=True) for one in trained)], lines)


def _parts(trained: Sequence[TrainPlan]) -> Grid:
    """Parameters of each part, and how many of them each stage trains."""
    lines = [
        [part, *(f"{one.counts[part].trained:,} of {one.counts[part].total:,}" for one in trained)]
        for part in trained[0].counts
    ]
    return Grid("trained parameters", [Column("part"), *(Column(one.name, right=True) for one in trained)], lines)


def _others(others: Sequence[OtherPlan], gpu: str) -> Grid:
    columns = [
        Column("stage"),
        Column("kind"),
        Column("memory", right=True),
        Column("where"),
        Column("disk", right=True),
    ]
    lines = [
        [
            one.name,
            one.kind,
            _size(one.needs.memory),
            gpu if one.needs.on_gpu else "computer",
            _size(one.needs.disk),
        ]
        for one in others
    ]
    return Grid("", columns, lines)


def _advise(one: TrainPlan, stream: IO[str]) -> None:
    if one.fits is not False:
        return
    stream.write(
        f"\n{one.name} does not fit at micro batch {one.batch.sequences}. Each line adds to those before it:\n"
    )
    for suggestion in one.suggestions:
        fits = f"fits micro batch {suggestion.micro_batch}" if suggestion.micro_batch else "does not fit"
        other = "; trains another way" if suggestion.changes_result else ""
        words = " ".join(f"'{word}'" if "{" in word else word for word in suggestion.overrides)
        away = f", {_gib(suggestion.host)} GiB a rank of host memory" if suggestion.host else ""
        stream.write(f"  {words}  ->  {_gib(suggestion.needed)} GiB{away}, {fits}{other}\n")


def _say_features(one: TrainPlan, stream: IO[str]) -> None:
    """What tower_cache takes, saves, and whether that pays."""
    found = one.features
    if found is None:
        return
    size = tables.bytes_text(found.n_bytes)
    rates = f"{found.reading * 1e3:.2g} ms to read, {found.seconds * 1e3:.2g} ms to compute"
    stream.write(f"\n{one.name}: tower_cache takes {size}; an image's features take {rates}.\n")
    if not found.pays:
        stream.write(f"  It does not pay: stage.{one.name}.tower_cache=null\n")
        return
    later = f"each later run of these images {found.flops / 1e18:.3g}"
    stream.write(f"  It saves {found.saved / 1e18:.3g} EFLOP in this run, {later}.\n")


def assumptions(found: planning.Plan, asked: planning.Options) -> list[str]:
    """What is not known but taken for granted, a sentence each."""
    said = [f"sizes of {path} as published (its folder is not here)" for path in found.stood_in]
    for one in found.stages:
        if isinstance(one, TrainPlan):
            said += [f"{one.name}: {source.name}: {source.told_by}" for source in one.sources]
            unknown = [source.name for source in one.sources if source.records is None]
            if one.duration is None:
                missing = " ".join(f"--records {name}=N" for name in unknown)
                said.append(f"{one.name}: no steps, time or cost without the number of records: {missing}")
            said.append(
                f"{one.name}: memory for a micro batch of {one.batch.sequences} rows of {one.batch.length} tokens, "
                f"time for {one.samples.mean:.0f} tokens a sample without padding"
            )
            said += _of_stage(found.run.stage[one.name], one)
    said.append(f"{asked.rates.mfu:g} of the GPU's peak is reached, recomputation counted (--mfu); docs/guides/plan.md")
    said.append(f"${asked.rates.price:g} per GPU and hour (--price)")
    if found.run.hardware.gpu != "cpu":
        context = memory.CONTEXT_BYTES // 2**20
        said.append(f"{context} MiB of CUDA context and {memory.FRAGMENTATION:.0%} of fragmentation, not measured here")
    return list(dict.fromkeys(said))


def _of_stage(asked: object, one: TrainPlan) -> list[str]:
    """What tiles, packing, evaluation and offload to a drive take for granted."""
    said = []
    if isinstance(asked, TrainStage) and asked.image_aspect in ("anyres", "slices") and one.samples.pictures:
        tokens, pieces = (n / one.samples.pictures for n in (one.samples.image_tokens, one.samples.squares))
        said.append(f"{one.name}: every image is cut as often as allowed: {pieces:.0f} pieces, {tokens:.0f} tokens")
    if isinstance(asked, TrainStage) and asked.packing is not None:
        fill = time.fill(asked.packing, one.samples)
        n = time.per_row(asked.packing, one.samples)
        said.append(f"{one.name}: {n:.1f} samples in a row of {asked.packing.length} tokens, {fill:.1%} of it filled")
    if one.duration is not None and one.duration.held_out is None:
        said.append(f"{one.name}: evaluation is not counted: not known how many samples; eval.max_samples or --records")
    if one.features is not None:
        rate = f"{DISK_BYTES_PER_SECOND / 1e9:g} GB a second"
        said.append(f"{one.name}: a node's disk reads {rate}, no two images are equal (tower_cache)")
    if one.memory.drive:
        said.append(f"{one.name}: what the drive's buffers take in host memory is not counted")
    return said


def _gib(n_bytes: int) -> str:
    if not n_bytes:
        return ""
    size = n_bytes / _GIB
    return f"{size:.2f}" if size >= 0.1 else f"{size:.4f}"


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 1 else f"{hours:,.1f}"


def _size(n_bytes: int) -> str:
    """In binary units, as memory is: `4.1 GiB`."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= 0.1 * limit:
            return f"{n_bytes / limit:,.1f} {unit}"
    return f"{n_bytes} B"


def _count(n: int) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= limit:
            return f"{n / limit:.3g}{unit}"
    return str(n)
