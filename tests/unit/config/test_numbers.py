"""Every number of the schema has a range: no infinity, nothing beyond it, and all of it can be checked in time."""

import math
import typing
from collections.abc import Iterator

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vlmrun.config import schema
from vlmrun.config.schema import Node, Target
from vlmrun.config.schema.average import MethodNode
from vlmrun.config.schema.stage import StageNode

FREE = {("DataConfig", "published"), ("BenchmarkConfig", "published"), ("HardwareConfig", "env")}


def nodes() -> list[type[BaseModel]]:
    named = (getattr(schema, name) for name in schema.__all__)
    found = {one for one in named if isinstance(one, type) and issubclass(one, BaseModel)}
    chosen = (one for base in (StageNode, MethodNode) for one in base.classes.values())
    found |= {one for one in chosen if one.__module__.startswith("vlmrun.")}
    return sorted(found - {Node, Target}, key=lambda one: one.__name__)


def numeric(annotation: object, marks: tuple[object, ...] = ()) -> Iterator[tuple[type, tuple[object, ...]]]:
    """Every number that a value may be, with its bounds, through unions, lists and dictionaries."""
    if annotation in (int, float):
        yield annotation, marks
    elif typing.get_origin(annotation) is typing.Annotated:
        inner, *own = typing.get_args(annotation)
        own = [each for mark in own for each in getattr(mark, "metadata", [mark])]
        yield from numeric(inner, (*marks, *own))
    elif typing.get_origin(annotation) is not typing.Literal:
        for part in typing.get_args(annotation):
            yield from numeric(part)


FIELDS = [
    (node, name, kind, bounds)
    for node in nodes()
    for name, field in node.model_fields.items()
    if (node.__name__, name) not in FREE
    for kind, bounds in numeric(field.annotation, tuple(field.metadata))
]


@pytest.mark.parametrize(("node", "name", "kind", "bounds"), FIELDS, ids=lambda value: getattr(value, "__name__", None))
def test_a_number_has_a_lowest_and_a_highest_value(node, name, kind, bounds):
    above = [mark for mark in bounds if isinstance(mark, Le | Lt)]
    below = [mark for mark in bounds if isinstance(mark, Ge | Gt)]
    assert above, f"{node.__name__}.{name} has no highest value"
    assert below, f"{node.__name__}.{name} has no lowest value"


def test_numbers_were_found():
    assert len(FIELDS) > 100


@given(st.sampled_from(FIELDS), st.data())
@settings(max_examples=300, deadline=None)
def test_no_number_outside_its_range_or_that_is_none_is_taken(field, data):
    node, name, kind, _ = field
    wild = st.one_of(
        st.sampled_from([math.inf, -math.inf, math.nan, 1e300, -1e300, 10**30, -(10**30), 2**63, -1e7]),
        st.integers(min_value=2**63, max_value=2**80),
    )
    value = data.draw(wild.map(lambda number: kind(number) if math.isfinite(number) else number))
    with pytest.raises(ValidationError) as refused:
        node.model_validate({name: value})
    assert any(error["loc"] and error["loc"][0] == name for error in refused.value.errors()), (node, name, value)


@pytest.mark.parametrize("value", [math.inf, math.nan, 10**40, [1.0, math.inf], {"deep": [math.nan]}])
def test_arguments_of_a_part_are_finite(value):
    with pytest.raises(ValidationError, match="finite"):
        Target.model_validate({"_target_": "vlmrun.model.connectors.mlp.MLP", "depth": value})
