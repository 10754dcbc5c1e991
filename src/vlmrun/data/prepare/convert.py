"""LLaVA, ShareGPT or OpenAI JSON to LLaVA's or MiniCPM-V's, and MiniCPM-V's to LLaVA's.

Nothing is lost: what the other format cannot say is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.data import formats
from vlmrun.data.prepare import parquet
from vlmrun.data.reading import rejection_error
from vlmrun.data.sample import IMAGE_TAG, Rejected, Sample, Turn


def to_minicpm(sample: Sample) -> dict[str, Any]:
    """A record of MiniCPM-V: one image under its name, several by marker in the order of the text."""
    images: str | dict[str, str] | None = None
    texts = [turn.text for turn in sample.turns]
    if len(sample.images) == 1 and IMAGE_TAG in texts[0]:
        images = sample.images[0]
    elif sample.images:
        images = {f"<image_{number:02d}>": name for number, name in enumerate(sample.images)}
        markers = iter(images)
        texts = [_numbered(text, markers) for text in texts]
    messages = [
        {"role": turn.role, "content": text} | _excluded(turn) for turn, text in zip(sample.turns, texts, strict=True)
    ]
    head = {"id": sample.id} | ({} if images is None else {"image": images}) | _system(sample)
    return head | {"conversations": messages}


def to_llava(sample: Sample) -> dict[str, Any]:
    """A record of LLaVA: a name or a list of names, tags where the images belong."""
    sides = {"user": "human", "assistant": "gpt"}
    messages = [{"from": sides[turn.role], "value": turn.text} | _excluded(turn) for turn in sample.turns]
    record: dict[str, Any] = {"id": sample.id} | _system(sample)
    if sample.images:
        record["image"] = sample.images[0] if len(sample.images) == 1 else list(sample.images)
    return record | {"conversations": messages}


def _system(sample: Sample) -> dict[str, Any]:
    return {} if sample.system is None else {"system": sample.system}


def _excluded(turn: Turn) -> dict[str, Any]:
    return {} if turn.supervised else {"loss": False}


FORMS: dict[str, Callable[[Sample], dict[str, Any]]] = {"minicpm": to_minicpm, "llava": to_llava}


def convert(source: Path, destination: Path, *, read_as: str, write_as: str) -> int:
    """Writes all records of a file in the other format and returns how many.

    Args:
        read_as: a data format, or `parquet`, whose rows keep their own.

    Raises:
        DataError: listing the records that cannot be used; nothing is written then.
    """
    if read_as == "parquet":
        return parquet.convert(source, destination)
    samples: list[Sample] = []
    wrong: list[Rejected] = []
    for index, found in enumerate(formats.reader(read_as)(source)):
        if isinstance(found, Rejected):
            wrong.append(found)
        else:  # LLaVA's records need no id, MiniCPM-V's do
            samples.append(found if found.id else replace(found, id=str(index)))
    if wrong:
        raise rejection_error(wrong)
    destination.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(FORMS[write_as](sample), ensure_ascii=False) for sample in samples)
    artifact.write_text(destination, f"[\n{lines}\n]\n")
    return len(samples)


def _numbered(text: str, markers: Iterator[str]) -> str:
    """Tags as markers; the line breaks that the reader puts around them are left to it."""
    first, *others = text.split(IMAGE_TAG)
    for other in others:
        first = first.removesuffix("\n") + next(markers) + other.removeprefix("\n")
    return first
