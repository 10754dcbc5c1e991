"""The plan against real updates, for a handful of configurations; `make bench-plan` has the whole grid."""

from __future__ import annotations

import pytest

from benchmarks import plan_error
from benchmarks.plan_error import case

CASES = [
    case("llama", "full", 2, precision="bf16", layers=2),
    case("llama", "full", 3, ranks=2, layers=2),
    case("llama", "lora", 2, precision="bf16", checkpointing=True, layers=3),
    case("phi", "frozen LLM", 1, layers=2),
    case("llama", "full and tower", 1, precision="bf16", micro=4, layers=2, share=0.5),
]


@pytest.mark.slow
@pytest.mark.ranks
def test_planned_memory_is_close_to_measured() -> None:
    errors = {}
    for one in CASES:
        planned, measured = plan_error.planned_bytes(one), plan_error.measured_bytes(one)
        errors[one.name] = 100 * (planned - measured) / measured
    _, p90, _, bias = plan_error.distribution(list(errors.values()))
    assert p90 <= 10, errors
    assert abs(bias) <= 5, errors


def test_the_distribution_of_errors() -> None:
    assert plan_error.distribution([-10.0, 0.0, 5.0, -1.0, 6.0]) == [5.0, 10.0, 10.0, 0.0]
