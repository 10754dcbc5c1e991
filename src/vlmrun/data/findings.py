"""What `data lint` finds, and how it is counted. Free of numpy and torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

# Problem class -> what it means, in the order of the table.
CLASSES = {
    "malformed": "the file cannot be read here",
    "record": "not a record of this format",
    "keys": "a key that is not read, or is written twice",
    "characters": "half a character, or a control character",
    "roles": "human and gpt do not take turns",
    "empty": "an empty question or answer",
    "placeholders": "image tags and images do not fit",
    "image_missing": "an image is not there",
    "image_outside": "an image is outside the image folder",
    "image_broken": "an image cannot be read, or is too large",
    "template": "the template cannot show this record",
    "special_text": "text that a template or tokenizer takes for a mark",
    "too_long": "longer than the maximum length: its end is cut off",
    "not_learnt": "no answer, or not every image, is within the maximum length",
    "duplicate_id": "an id that an earlier record has",
    "duplicate_record": "the same images and text as an earlier record",
    "count": "another number of records than the data set should have",
}

# A reader's rejection is classed by its words; a test goes through all of them.
_WORDS = (
    ("malformed", r"^malformed JSON|is not UTF-8|^line \d+ is longer than"),
    ("characters", r"holds (half a character|the control character)"),
    ("roles", r"^roles out of order|is from |\.role` is "),
    ("empty", r"^empty |has no answer$|has no text$|is missing or empty$|\.content` is empty$"),
    (
        "placeholders",
        r"tags(,| in the text| for one image)|\.content` holds |stands (nowhere )?in the text|image mark of",
    ),
    ("duplicate_id", r"is used twice$|is used by record"),
    ("keys", r"^key .* is (not read|written twice)"),
)


def kind_of(what: str) -> str:
    """The class of a reader's rejection."""
    return next((kind for kind, words in _WORDS if re.search(words, what)), "record")


# What is no problem, but good to know of an image -> what becomes of it.
NOTES = {
    "image_transparent": "transparent: composed on image_background (compat.images: upstream drops the transparency)",
    "image_turned": "turned by its EXIF orientation (compat.images: upstream leaves it as stored)",
    "image_deep": "16-bit, 32-bit or float gray: scaled to 8 bits (compat.images: upstream clips it to white)",
    "image_colors": "CMYK or LAB colors: converted to RGB",
    "image_profile": "colors of a profile: converted to sRGB (compat.images: upstream takes the numbers as they are)",
    "image_profile_broken": "a color profile that is damaged, or for other colors than the image has: ignored",
    "image_animated": "several frames or pages: only the first is seen",
}


@dataclass(frozen=True)
class Wrong:
    """A finding's class and words, before it is known whose it is."""

    kind: str
    what: str


@dataclass(frozen=True)
class Finding:
    """One problem of one record. `index` is None for one of the whole file."""

    kind: str
    file: str
    index: int | None
    id: str
    what: str

    @property
    def where(self) -> str:
        """The file, the record's number in it, and its id when it has one."""
        place = self.file if self.index is None else f"{self.file}[{self.index}]"
        return place + (f" (id {self.id!r})" if self.id else "")

    def to_dict(self) -> dict[str, Any]:
        """A line of the report."""
        return asdict(self)


@dataclass
class Tally:
    """Counts, and the first examples of every class."""

    n_records: int = 0
    n_by_header: int = 0  # images that were not decoded
    n_examples: int = 3
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def n_problems(self) -> int:
        """Findings that are no mere notes."""
        return sum(count for kind, count in self.counts.items() if kind not in NOTES)

    def add(self, finding: Finding) -> None:
        """Counts one."""
        self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
        kept = self.examples.setdefault(finding.kind, [])
        if len(kept) < self.n_examples:
            kept.append(finding)
