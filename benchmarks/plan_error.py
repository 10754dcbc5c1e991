"""How far the memory that `vlmrun plan` states is from what a real update takes: `python -m benchmarks.plan_error`.

Every case is a process of its own (two under two ranks): the trainer's model, engine and optimizer, two updates on one
made-up batch, all live tensors counted (`tensor_memory`). The largest peak of the two is compared with the plan's.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import QUIET, Table, parser, show

GIVEN = "given"  # the sizes the formulas were checked with while they were written
SHARED = "shared"  # engines and ways of sharing beyond ZeRO, two ranks
HELD_OUT_SHARED = "held out, shared"
HELD_OUT = "held out"  # drawn afterwards, other sizes


@dataclass(frozen=True)
class Case:
    """A run to plan and to measure."""

    name: str
    overrides: tuple[str, ...]
    ranks: int
    sequences: int
    length: int
    share: float  # of a sequence that is supervised


_LLM = "model.llm.config"
_TOWER = "model.tower.config"
_STAGE = "stage.instruct"
_LORA = "{r: 16, alpha: 32.0, dropout: 0.05, targets: all-linear, bias: none, modules_to_save: []}"
TUNINGS = {
    "full": (),
    "frozen LLM": (f"{_STAGE}.tune.llm=freeze",),
    "lora": (f"{_STAGE}.tune.llm=lora", f"{_STAGE}.lora={_LORA}"),
    "full and tower": (f"{_STAGE}.tune.tower=full",),
}
FAMILIES = {
    "llama": ("model/llm=pico",),
    "phi": ("model/llm=pico_phi",),
    "phi3": ("model/llm=pico_phi3",),
    "qwen2": ("model/llm=pico_qwen2",),
    "stablelm": ("model/llm=pico_stablelm",),
}


def case(
    family: str,
    tuning: str,
    zero: int,
    *,
    precision: str = "fp32",
    checkpointing: bool = False,
    ranks: int = 1,
    accumulation: int = 1,
    micro: int = 2,
    length: int = 256,
    hidden: int = 256,
    layers: int = 4,
    kv_heads: int | None = None,
    vocab: int = 2048,
    tower: str = "pico_clip",
    share: float = 0.2,
    engine: str = "deepspeed",
    sharing: str = "",
) -> Case:
    """A point of the grid.

    Args:
        sharing: tensor_parallel or sequence_parallel, by all ranks.
    """
    heads = hidden // 32
    sizes = {
        f"{_LLM}.hidden_size": hidden,
        f"{_LLM}.intermediate_size": hidden * 11 // 4 // 8 * 8,
        f"{_LLM}.num_hidden_layers": layers,
        f"{_LLM}.num_attention_heads": heads,
        f"{_LLM}.vocab_size": vocab,
        f"{_LLM}.max_position_embeddings": 2048,
        f"{_TOWER}.hidden_size": hidden // 2,
        f"{_TOWER}.intermediate_size": hidden * 2,
        f"{_TOWER}.num_hidden_layers": 3,
        f"{_TOWER}.image_size": 128,
        "model.max_length": 2048,
        "model.tower.layers": "[-2]",
        f"{_STAGE}.init_from": "null",
        f"{_STAGE}.micro_batch": micro,
        f"{_STAGE}.global_batch": micro * accumulation * (1 if sharing else ranks),
        f"{_STAGE}.engine": engine,
        f"{_STAGE}.zero": zero,
        f"{_STAGE}.gradient_checkpointing": str(checkpointing).lower(),
        "hardware.precision": precision,
        "hardware.ranks_per_node": ranks,
    }
    if family != "phi":
        sizes[f"{_LLM}.num_key_value_heads"] = kv_heads or heads
    if sharing:
        sizes[f"hardware.{sharing}"] = ranks
    overrides = (*FAMILIES[family], f"model/tower={tower}", *(f"{k}={v}" for k, v in sizes.items()), *TUNINGS[tuning])
    grouped = f"/{kv_heads}" if kv_heads else ""
    recomputed = " checkpointing" if checkpointing else ""
    how = f"FSDP2 {zero}" if engine == "fsdp" else f"ZeRO-{zero} {sharing}".strip()
    name = f"{family}{grouped} {tower} {tuning} {how} {precision}{recomputed} ranks {ranks} "
    name += f"x{accumulation} batch {micro}x{length} width {hidden}x{layers}"
    return Case(name, overrides, ranks, micro, length, share)


def grid() -> list[Case]:
    """The given part: every ZeRO stage, tuning, precision and checkpointing; then each other thing varied alone."""
    cases = [
        case("llama", tuning, zero, precision=precision, checkpointing=checkpointing)
        for tuning, zero, precision, checkpointing in itertools.product(
            TUNINGS, range(4), ("fp32", "bf16"), (False, True)
        )
        if not (precision == "bf16" and zero == 0)
    ]
    cases += [case(family, tuning, 2, precision="bf16") for family in FAMILIES for tuning in ("full", "lora")]
    cases += [case("llama", "full", zero, precision=p, ranks=2) for zero in range(1, 4) for p in ("fp32", "bf16")]
    cases += [case("llama", "full", zero, precision="bf16", accumulation=3) for zero in (1, 2, 3)]
    cases += [
        case("llama", "full", 2, tower="pico"),
        case("llama", "full", 2, kv_heads=2),
        case("llama", "lora", 3, ranks=2),
    ]
    return cases


def shared() -> list[Case]:
    """FSDP2, and models and sequences that two ranks share."""
    ways = [("llama", zero, {"engine": "fsdp"}) for zero in (2, 3)]
    ways += [
        (family, zero, {"sharing": sharing})
        for family, zero in (("llama", 1), ("phi", 2), ("qwen2", 3))
        for sharing in ("tensor_parallel", "sequence_parallel")
    ]
    cases = [
        case(family, "full", zero, precision=precision, checkpointing=checkpointing, ranks=2, **how)
        for family, zero, how in ways
        for precision, checkpointing in (("fp32", False), ("bf16", True))
    ]
    cases += [
        case("llama", tuning, 3, precision="bf16", ranks=2, micro=4, length=320, hidden=384, engine="fsdp", share=0.4)
        for tuning in TUNINGS
    ]
    cases += [case("llama", "full", 3, ranks=2, accumulation=2, engine="fsdp")]
    cases += [
        case("llama", "frozen LLM", 2, precision="bf16", ranks=2, micro=4, sharing=sharing)
        for sharing in ("tensor_parallel", "sequence_parallel")
    ]
    return cases


def _drawn_sizes(draw: random.Random) -> dict[str, int]:
    return {
        "accumulation": draw.choice([1, 2]),
        "micro": draw.choice([1, 3, 4]),
        "length": draw.choice([160, 320, 448]),
        "hidden": draw.choice([128, 192, 384]),
        "layers": draw.choice([2, 5]),
        "vocab": draw.choice([1024, 3072]),
    }


def held_out(n: int, seed: int = 35) -> list[Case]:
    """Points drawn at random, with sizes that the given part does not have."""
    draw = random.Random(seed)
    cases = []
    while len(cases) < n:
        zero, precision = draw.randrange(4), draw.choice(["fp32", "bf16"])
        if precision == "bf16" and zero == 0:
            continue
        cases.append(
            case(
                draw.choice(list(FAMILIES)),
                draw.choice(list(TUNINGS)),
                zero,
                precision=precision,
                checkpointing=draw.random() < 0.5,
                ranks=draw.choice([1, 1, 2]),
                **_drawn_sizes(draw),
                tower=draw.choice(["pico", "pico_clip"]),
                share=draw.choice([0.1, 0.4, 0.6]),
            )
        )
    return cases


def held_out_shared(n: int, seed: int = 36) -> list[Case]:
    """The same for engines and ways of sharing beyond ZeRO."""
    draw = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < n:
        way = draw.choice(["fsdp", "tensor_parallel", "sequence_parallel"])
        fsdp = way == "fsdp"
        family, tuning = draw.choice(["llama", "phi", "qwen2"]), draw.choice(["full", "frozen LLM", "full and tower"])
        zero, precision = draw.choice([2, 3] if fsdp else [1, 2, 3]), draw.choice(["fp32", "bf16"])
        if (way, tuning, zero, precision) == ("tensor_parallel", "frozen LLM", 1, "bf16"):
            continue  # refused
        cases.append(
            case(
                family,
                tuning,
                zero,
                precision=precision,
                checkpointing=draw.random() < 0.5,
                ranks=2,
                **_drawn_sizes(draw),
                share=draw.choice([0.1, 0.4, 0.6]),
                **{"engine": way} if fsdp else {"sharing": way},
            )
        )
    return cases


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--held-out", type=int, default=40, help="how many points are drawn")
    options.add_argument("--part", choices=[GIVEN, SHARED, HELD_OUT, HELD_OUT_SHARED], help="this one alone")
    options.add_argument("--cases", action="store_true", help="print every case too")
    chosen = options.parse_args()
    os.environ.update({**QUIET, "DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"})
    parts = {
        GIVEN: grid(),
        SHARED: shared(),
        HELD_OUT: held_out(chosen.held_out),
        HELD_OUT_SHARED: held_out_shared(chosen.held_out // 2),
    }
    if chosen.part:
        parts = {chosen.part: parts[chosen.part]}
    if chosen.quick:
        parts = {name: cases[:2] for name, cases in parts.items()}
    rows: list[list[Any]] = []
    single: list[list[Any]] = []
    for name, cases in parts.items():
        errors = []
        for one in cases:
            planned, measured = planned_bytes(one), measured_bytes(one)
            errors.append(100 * (planned - measured) / measured)
            single.append([name, one.name, round(measured / 1e6, 1), round(planned / 1e6, 1), round(errors[-1], 1)])
            if chosen.cases:
                print(*single[-1], sep="\t", flush=True)
        if errors:
            rows.append([name, len(errors), *distribution(errors)])
    title = "error of planned against measured peak tensor memory, percent of measured"
    show(Table(title, ["part", "cases", "median", "p90", "max", "bias"], rows, _NOTES), chosen.json)


_NOTES = [
    "median, p90, max: of the absolute error; bias: the mean, positive where the plan states more than there is.",
    "Tensors of one CPU rank (all operations' results and buffers alive at once); no CUDA context, no fragmentation.",
]


def distribution(errors: list[float]) -> list[float]:
    """Median, 90th percentile and maximum of the absolute errors, and the mean error."""
    sizes = sorted(abs(error) for error in errors)
    p90 = sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))]
    return [round(value, 1) for value in (statistics.median(sizes), p90, sizes[-1], statistics.mean(errors))]


def planned_bytes(one: Case) -> int:
    """The plan's peak."""
    return plan_of(one).tensors


def plan_of(one: Case) -> Any:
    """The plan's memory record."""
    from vlmrun.cli import train
    from vlmrun.plan import memory
    from vlmrun.plan import run as planning
    from vlmrun.plan.activations import Batch

    run = train.compose(["+recipe=smoke", *one.overrides], [])
    supervised = one.sequences * int(one.length * one.share)
    batch = Batch(one.sequences, one.length, supervised, one.sequences, padded=one.sequences > 1)
    shapes, _ = planning.shapes(run.model)
    return memory.peak(shapes, run.stage["instruct"], run.hardware, batch)


def measured_bytes(one: Case) -> int:
    """The largest peak of the ranks."""
    from tests.integration import ranks

    return max(max(peaks.values()) for peaks in ranks.run(measure, one.ranks, one))


def measure(one: Case) -> dict[str, int]:
    """Peaks of forward, backward and update, on one rank of a process group."""
    import torch

    from benchmarks.tensor_memory import Meter
    from vlmrun.cli import train
    from vlmrun.config import derived
    from vlmrun.model import parts, tune
    from vlmrun.model.head import Head, causal_lm
    from vlmrun.model.ulysses import Ulysses
    from vlmrun.train import optim
    from vlmrun.train.engine import create
    from vlmrun.zero import config as zero

    run = train.compose(["+recipe=smoke", *one.overrides], [])
    stage: Any = run.stage["instruct"]
    width = run.model.llm.arguments["config"]["hidden_size"]
    uses_deepspeed = stage.engine == "deepspeed"
    dtype = torch.bfloat16 if uses_deepspeed and run.hardware.precision == "bf16" else torch.float32
    loaded = parts.assemble(run.model, dtype=dtype, attention=run.hardware.attention, seed=1)
    vlm = loaded.vlm
    tune.apply(vlm, stage.tune, stage.lora)
    vlm.head = Head(vlm.llm, stage.loss_head, stage.loss_chunk)
    vlm.set_gradient_checkpointing(stage.gradient_checkpointing)
    if run.hardware.sequence_parallel > 1:
        vlm.sequence = Ulysses(causal_lm(vlm.llm), torch.distributed.group.WORLD)
    vlm.train()
    vlm.tower.train(stage.tune.tower != "freeze")
    config = zero.deepspeed_config(stage, run.hardware, hidden_dim=width) if uses_deepspeed else None
    engine = create(vlm, optim.groups(vlm, stage.optim), stage, run.hardware, config)
    batch = _batch(one, vlm)
    micro_batches = derived.accumulation(stage, run.hardware)
    with Meter() as meter:
        for _ in range(2):
            for _ in range(micro_batches):
                loss = engine.forward(batch)
                meter.mark("forward")
                engine.backward(loss / 100)
                meter.mark("backward")
                del loss
            engine.step(1.0)
            meter.mark("update")
    return meter.peaks


def _batch(one: Case, vlm: Any) -> dict[str, Any]:
    """One picture and some text in each row; all rows but the first padded."""
    import torch

    from vlmrun.ids import IGNORE, IMAGE_TOKEN

    torch.manual_seed(0)
    n_image, text = vlm.image_tokens(None), one.length * 7 // 8
    ids = torch.randint(5, 400, (one.sequences, one.length))
    ids[:, 1 : 1 + n_image] = IMAGE_TOKEN
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1:, text:] = False
    labels = torch.full_like(ids, IGNORE)
    labels[:, text - int(one.length * one.share) : text] = 7
    pixels = torch.randn(one.sequences, 3, vlm.image_size, vlm.image_size)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixels": pixels, "layouts": None}


if __name__ == "__main__":
    main()
