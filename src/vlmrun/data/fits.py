"""Whether a sample fits: its images into its text, its turns into a template, its tokens into the maximum length."""

from __future__ import annotations

from collections.abc import Sequence

from vlmrun.data import system
from vlmrun.data.sample import IMAGE_TAG, ONE_TAG, Sample, misplaced
from vlmrun.data.templates import Template
from vlmrun.errors import Problem
from vlmrun.ids import IMAGE_TOKEN


def misfit(sample: Sample, template: Template) -> Problem | None:
    """Why a template cannot show a sample, known before anything is tokenized."""
    if (wrong := misplaced(sample)) is not None:
        return Problem(wrong, sample.where, ONE_TAG)
    if template.keep_question:
        return system.missing(template, sample)
    roles = [turn.role for turn in sample.turns]
    if sample.images and roles == ["user", "assistant"] and IMAGE_TAG in sample.turns[0].text:
        return system.missing(template, sample)
    return Problem(
        f"template {template.name!r} takes one question with an image and one answer; "
        f"this record has {len(sample.turns)} turns and {len(sample.images)} images",
        sample.where,
        "use this template for captions only, or choose another with stage.*.template",
    )


def kept_tokens(ids: Sequence[int], image_tokens: Sequence[int], max_length: int) -> int:
    """How many ids fit, each image counting its own tokens; an image that fits in part does not."""
    length = 0
    of_images = iter(image_tokens)
    for index, token in enumerate(ids):
        length += next(of_images) if token == IMAGE_TOKEN else 1
        if length > max_length:
            return index
    return len(ids)


def counted(image_tokens: Sequence[int]) -> str:
    """Image tokens in an error's words."""
    if len(set(image_tokens)) == 1:
        return f"{image_tokens[0]} of them per image"
    return f"images take {', '.join(str(count) for count in image_tokens)} of them"
