"""Where a record's own system text stands in a template: in the place of the template's. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vlmrun.data import templates
from vlmrun.data.sample import Sample
from vlmrun.data.templates import TEMPLATES, Template
from vlmrun.errors import Problem

# The texts of built-in templates: where one of them stands, a record's own goes.
_TEXTS = (
    templates.SYS_USER,
    templates.SYS_HUMAN,
    templates.SYS_LLAVA2,
    templates.SYS_LLAMA2,
    templates.SYS_MMTAG,
    templates.SYS_MPT,
    templates.SYS_MPT_V0,
    templates.SYS_KO,
    "Answer the questions.",
    "You are a helpful assistant.",
)


@dataclass(frozen=True)
class Place:
    """A field of a template, and what stands around the system text in it."""

    field: Literal["system", "first_user_start"]
    before: str
    after: str


def _place(template: Template) -> Place | None:
    """The place of the built-in system text."""
    fields: tuple[Literal["system", "first_user_start"], ...] = ("system", "first_user_start")
    for field in fields:
        value = getattr(template, field) or ""
        for text in _TEXTS:
            if value.count(text) == 1:
                before, _, after = value.partition(text)
                return Place(field, before, after)
    return None


_HEADER = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
# Templates without a text of their own, whose models know a system turn.
_EMPTY = {
    "minicpm_v25": Place("system", _HEADER, "<|eot_id|>"),
    "micro": Place("system", "", "<|end|>"),
}
PLACES = _EMPTY | {name: place for name, each in TEMPLATES.items() if (place := _place(each)) is not None}


def placed(template: Template, sample: Sample) -> Template:
    """The template with the sample's system text, or as it is where the sample has none or `missing` says why not."""
    place = PLACES.get(template.name)
    if sample.system is None or place is None:
        return template
    text = sample.system.strip() if template.trims else sample.system
    whole = place.before + text + place.after
    return replace(template, system=whole) if place.field == "system" else replace(template, first_user_start=whole)


def missing(template: Template, sample: Sample) -> Problem | None:
    """Why a template cannot show a sample's system text."""
    if sample.system is None or template.name in PLACES:
        return None
    return Problem(
        f"template {template.name!r} has no place for the record's `system` text",
        sample.where,
        f"write it into the first question, or another stage.*.template: {', '.join(sorted(PLACES))}",
    )
