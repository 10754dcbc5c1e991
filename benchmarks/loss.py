"""The loss in chunks against full logits: `python -m benchmarks.loss`.

Both sides take the same hidden states, head and labels in one process, in turn, and do forward and backward.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Table, parser, show

# SmolLM2-135M's width and that of models of 1 to 2 B.
_CASES = [("fp32", 576), ("bf16", 576), ("bf16", 2048)]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--positions", type=int, default=2048, help="of one row")
    options.add_argument("--vocabulary", type=int, default=32000)
    options.add_argument("--share", type=float, default=0.25, help="of positions that are supervised")
    options.add_argument("--chunk", type=int, action="append", help="another size than the default of conf/")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    size = (256, 4000) if chosen.quick else (chosen.positions, chosen.vocabulary)
    rows = []
    for precision, width in _CASES[: 1 if chosen.quick else None]:
        for trained in (False, True):
            problem = make(*size, width, chosen.share, precision, trained)
            found = measure(problem, chosen.chunk or [_default_chunk()], 1 if chosen.quick else chosen.rounds)
            rows += [[precision, width, "trained" if trained else "frozen", *row] for row in found]
    title = f"loss and gradients of {size[0]} positions x {size[1]} tokens, {chosen.share:.0%} supervised, one thread"
    show(Table(title, _HEADER, rows, _NOTES), chosen.json)


_HEADER = [
    "precision",
    "width",
    "head",
    "way",
    "cpu ms",
    "times faster",
    "peak MiB",
    "times smaller",
    "but for gradients",
]
_NOTES = [
    "full logits: the head on every position, .float(), labels shifted, cross_entropy over all positions with\n"
    "ignore_index, as transformers' ForCausalLMLoss does. chunked: model/loss.py, with so many positions in a chunk.",
    "peak: the most bytes held at a time beyond the inputs, counted by torch's profiler from allocations and frees.\n"
    "A trained head's gradient is as large as the head and both ways must hand it over; the last column compares\n"
    "what is held beyond the gradients handed over.",
    "cpu ms: processor time of the process, which other work on the machine disturbs less than the clock; medians.\n"
    "times faster: median over rounds of the ratio within a round, the ways taking turns. At a quarter supervised\n"
    "three quarters of the products are saved; what goes beyond four times comes from the matrices that are not made.",
]


def _default_chunk() -> int:
    from vlmrun.config.compose import compose

    return int(compose(["+recipe=smoke"]).tree["stage"]["instruct"]["loss_chunk"])


def make(positions: int, vocabulary: int, width: int, share: float, precision: str, trained: bool) -> dict[str, Any]:
    """Random hidden states, a head and labels, of which `share` are supervised, in runs as answers are."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.randint(0, vocabulary, (1, positions))
    labels[:, : round(positions * (1 - share))] = -100
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return {
        "hidden": torch.randn(1, positions, width).to(dtype).requires_grad_(),
        "weight": (torch.randn(vocabulary, width) / width**0.5).to(dtype).requires_grad_(trained),
        "labels": labels,
    }


def full(hidden: Any, weight: Any, labels: Any) -> Any:
    """Source: transformers 5.23 loss/loss_utils.py, ForCausalLMLoss, with reduction sum."""
    from torch.nn.functional import cross_entropy, linear, pad

    logits = linear(hidden, weight).float()
    shifted = pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    return cross_entropy(logits.view(-1, logits.shape[-1]), shifted.view(-1), ignore_index=-100, reduction="sum")


def chunked(size: int) -> Callable[..., Any]:
    """Ours."""
    from vlmrun.model.loss import ChunkedLoss, Chunks, Tail, supervised

    def compute(hidden: Any, weight: Any, labels: Any) -> Any:
        chosen, targets = supervised(hidden, labels)
        return ChunkedLoss.apply(chosen, weight, None, targets, Chunks(size, Tail(), True))

    return compute


def measure(problem: dict[str, Any], sizes: list[int], rounds: int) -> list[list[Any]]:
    """One row for each way."""
    ways = {"full logits": full, **{f"chunked, {size}": chunked(size) for size in sizes}}
    losses = {name: float(way(**problem).detach()) for name, way in ways.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-4 * max(losses.values()), losses
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(_run(way, problem))
    peaks = {name: _peak(way, problem) for name, way in ways.items()}
    given = sum(leaf.nbytes for leaf in problem.values() if leaf.requires_grad)
    first = next(iter(ways))
    rows = []
    for name in ways:
        faster = statistics.median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
        ratios = [faster, peaks[first] / peaks[name], (peaks[first] - given) / (peaks[name] - given)]
        shown = [None] * 3 if name == first else [round(ratio, 1) for ratio in ratios]
        milliseconds = round(1000 * statistics.median(seconds[name]), 1)
        rows.append([name, milliseconds, shown[0], round(peaks[name] / 2**20, 1), *shown[1:]])
    return rows


def _run(way: Callable[..., Any], problem: dict[str, Any]) -> float:
    """Processor seconds of forward and backward."""
    for leaf in problem.values():
        leaf.grad = None
    began = time.process_time()
    way(**problem).backward()
    return time.process_time() - began


def _peak(way: Callable[..., Any], problem: dict[str, Any]) -> int:
    """Most bytes held at a time beyond those held before."""
    from torch.profiler import ProfilerActivity, profile

    for leaf in problem.values():
        leaf.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        way(**problem).backward()
    held = most = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


if __name__ == "__main__":
    main()
