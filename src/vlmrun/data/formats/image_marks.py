"""Marks by which other formats say that an image goes here: refused, or counted where they may be ordinary words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from vlmrun.data.sample import IMAGE_TAG, Sample, Turn
from vlmrun.errors import Problem

# Nothing else is written so.
_CERTAIN = re.compile(
    r"<img>[^<>\n]{1,512}</img>"  # Qwen-VL
    r"|<\|(?:image|img|video|audio|vision|image_pad|video_pad|image_start|image_end|vision_start|vision_end)(?:_\d+)?\|>"
    r"|<(?:image|img|video|audio)[ _-]?\d+>"
    r"|<(?:ImageHere|VideoHere|IMG_CONTEXT|image_soft_token|start_of_image|image_placeholder|video_placeholder)>"
)
# Words of HTML and of forums as well: marks where a question begins or ends with them, perhaps code inside of it.
_DOUBTFUL = re.compile(r"<(?:img|video|audio)>|\[(?:IMG|IMAGE|VIDEO)\]", re.IGNORECASE)


def refused(turns: Sequence[Turn], ignored: Sequence[str] = (), system: str | None = None) -> list[Problem]:
    """Marks that would be trained as words although an image, or a video, is meant.

    Args:
        ignored: marks, and patterns that begin with `<`, of `data.NAME.ignore_keys`.
    """
    found = []
    texts = [("the system text", system or "", False)]
    texts += [(f"message {number}", turn.text, turn.role == "user") for number, turn in enumerate(turns)]
    for place, text, is_question in texts:
        mark = next((mark for mark in _marks(text, is_question) if not _is_ignored(mark, ignored)), None)
        if mark is None:
            continue
        pattern = "<img>*" if mark.endswith("</img>") else mark
        fix = f"write {IMAGE_TAG} there and the file's name under `image`; "
        fix += f"""'data.<name>.ignore_keys=["{pattern}"]' takes it as words"""
        found.append(Problem(f"{place} contains {mark!r}, an image mark of another format", fix=fix))
    return found


def _is_ignored(mark: str, ignored: Sequence[str]) -> bool:
    return any(mark == each or (each.startswith("<") and fnmatchcase(mark, each)) for each in ignored)


def _marks(text: str, is_question: bool) -> Iterator[str]:
    for certain in _CERTAIN.finditer(text):
        yield certain[0]
    text = text.strip()
    for doubtful in _DOUBTFUL.finditer(text) if is_question else ():
        at_edge = doubtful.start() == 0 or doubtful.end() == len(text)
        closing = doubtful[0].replace("<", "</").replace("[", "[/").lower()
        if at_edge and closing not in text.lower():
            yield doubtful[0]


def as_words(sample: Sample) -> list[str]:
    """Marks of a sample that are taken as words: `<image>` where no image is named, and those of HTML and forums."""
    found = [mark for turn in sample.turns for mark in _DOUBTFUL.findall(turn.text)]
    if not sample.images and any(IMAGE_TAG in turn.text for turn in sample.turns):
        found.insert(0, IMAGE_TAG)
    return list(dict.fromkeys(found))
