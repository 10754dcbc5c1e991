"""Templates and records as the published codes take them: for `stage.*.compat` only. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from vlmrun.data.sample import IMAGE_TAG, Sample, Turn
from vlmrun.data.templates import TEMPLATES, Template
from vlmrun.errors import DataError, Problem

Project = Literal["llava", "kollava", "denseconnector", "bunny", "minicpm"]  # the last: minicpm_labels
HASHES = ("llava_v0", "v0_mmtag", "kollava_mistral", "phi")  # the last two fall through to that path upstream


def effective(template: Template, *, v0_is_v1: bool, llama3_system_header: bool) -> Template:
    """The template that upstream's flag really trains with."""
    if v0_is_v1 and template.name == "llava_v0":
        template = replace(TEMPLATES["vicuna_v1"], image_start=template.image_start, image_end=template.image_end)
    if llama3_system_header and template.name == "llama_3":
        template = replace(template, assistant_start=template.assistant_start.replace("assistant", "system"))
    return template


def as_upstream(sample: Sample, template: Template, project: Project | None) -> Sample:
    """The record as upstream takes it (`compat.records`): fewer tags, a leading answer dropped.

    Raises:
        DataError: where upstream stops with an error, and where it would take another sample's image.
    """
    turns = sample.turns
    if sample.images:
        turns = tuple(replace(turn, text=one_tag(turn.text)) for turn in turns)
    if not falls_through(template, project) and template.keep_question:
        turns = _alternating(turns, sample.where)
    n_tags = sum(turn.text.count(IMAGE_TAG) for turn in turns) if sample.images else 0
    if n_tags and n_tags != len(sample.images):
        raise DataError(
            f"{n_tags} {IMAGE_TAG} tags are left, but the record has {len(sample.images)} images",
            sample.where,
            "upstream would take the next sample's image; write one tag in one turn",
        )
    return replace(sample, turns=turns, images=sample.images if n_tags else ())


def excluded(sample: Sample, project: Project | None) -> Problem | None:
    """What keeps upstream's label arithmetic from a sample: it supervises every answer."""
    if project is None or all(turn.supervised for turn in sample.turns):
        return None
    fix = "leave compat.labels null, or leave the record out"
    return Problem(f"`loss: false` keeps an answer from training, which compat.labels={project} cannot", "", fix)


def falls_through(template: Template, project: Project | None) -> bool:
    """Whether upstream trains this template through its `### ` path."""
    return project not in (None, "bunny") and template.name in HASHES


def one_tag(text: str) -> str:
    """One tag a turn, at its start, however many there were.

    Source: haotian-liu/LLaVA@c121f043 llava/train/train.py, preprocess_multimodal.
    """
    if IMAGE_TAG not in text:
        return text
    return f"{IMAGE_TAG}\n{text.replace(IMAGE_TAG, '').strip()}".strip()


def _alternating(turns: tuple[Turn, ...], where: str) -> tuple[Turn, ...]:
    for turn in turns:
        if turn.role == "unknown":
            raise DataError("a message is from neither human nor gpt", where, "name the roles human and gpt")
    if turns[0].role == "assistant":
        turns = turns[1:]
    for number, turn in enumerate(turns):
        if turn.role != ("assistant" if number % 2 else "user"):
            raise DataError(f"roles out of order at message {number}", where, "human and gpt take turns")
    return turns
