"""Samples: the one internal form between any data format and the encoder. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vlmrun.errors import Problem

IMAGE_TAG = "<image>"  # marks in a turn's text where an image goes
ONE_TAG = f"write {IMAGE_TAG} once for each image"

# system: in readers only, which keep its text apart; unknown: read under compat.records only
Role = Literal["user", "assistant", "system", "unknown"]


@dataclass(frozen=True)
class Turn:
    """What one side said.

    Args:
        supervised: false for an answer that the record excludes from training (`loss: false`).
    """

    role: Role
    text: str
    supervised: bool = True


@dataclass(frozen=True)
class Sample:
    """A conversation and the images it refers to, in the order of their `<image>` tags.

    Args:
        images: file names below the image root.
        source: annotation file and record index (from 0).
        system: the record's own system text, in place of the template's; None: it has none.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    source: tuple[str, int]
    system: str | None = field(default=None, kw_only=True)

    @property
    def where(self) -> str:
        """The record in an error's words."""
        return locate_record(self.source, self.id)


@dataclass(frozen=True)
class Question(Sample):
    """A sample that ends with a question, and the answer it is compared with; empty where none is known.

    Args:
        others: further reference answers, each as good as `answer`.
    """

    answer: str
    category: str
    split: str
    others: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def answered(self) -> Sample:
        """The conversation with its answer, as a training sample."""
        return Sample(self.id, self.images, (*self.turns, Turn("assistant", self.answer)), self.source)


@dataclass(frozen=True)
class Rejected:
    """A record that cannot become a sample. Readers yield it in the record's place, so that the rest is still read."""

    id: str
    source: tuple[str, int]
    what: str
    fix: str

    def to_dict(self) -> dict[str, Any]:
        """A line of skipped.jsonl."""
        return {"source": self.source[0], "index": self.source[1], "id": self.id, "reason": self.what}

    @property
    def problem(self) -> Problem:
        """The same as a problem of an error."""
        return Problem(self.what, locate_record(self.source, self.id), self.fix)


def misplaced(sample: Sample) -> str | None:
    """How the tags of a sample differ from its images, in number; a sample without images has words only."""
    n_tags, n_images = sum(turn.text.count(IMAGE_TAG) for turn in sample.turns), len(sample.images)
    return None if n_images in (0, n_tags) else f"{n_tags} {IMAGE_TAG} tags in the text for {n_images} images"


def same_answer(given: str, expected: str) -> bool:
    """Exact match but for letter case and surrounding space."""
    return given.strip().lower() == expected.strip().lower()


def move_image_tags(text: str) -> str:
    """Puts a turn's image tags at its start, as LLaVA does before training: of records with one image, and in chat.

    Source: haotian-liu/LLaVA@c121f043 llava/train/train.py, preprocess_multimodal. There several tags of a turn
    become one (`compat.records`); here each is kept.
    """
    n_tags = text.count(IMAGE_TAG)
    if n_tags == 0:
        return text
    return ((IMAGE_TAG + "\n") * n_tags + text.replace(IMAGE_TAG, "").strip()).strip()


def locate_record(source: tuple[str, int], id: str) -> str:
    """`file[index]` as jq counts records, and the id when the record has one."""
    file, index = source
    return f"{file}[{index}]" + (f" (id {id!r})" if id else "")
