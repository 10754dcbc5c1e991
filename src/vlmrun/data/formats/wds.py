"""webdataset shards: a folder of tar files, each sample an image and a `json` with the turns, or a LLaVA record.

All turns are used, unless `data.NAME.fields` names a question and an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmrun.data.formats import keys, llava
from vlmrun.data.sample import IMAGE_TAG, Rejected, Sample
from vlmrun.data.shards import metadata, reading

_KEYS = ("id", "image", "conversations")
_FIX = "a shard's sample has an image and turns: leave the key out, and convert again"


def read(path: Path, *, fields: Mapping[str, str | None] | None = None) -> Iterator[Sample | Rejected]:
    """Yields every sample of all shards below a folder, or a rejection that says what is wrong with it.

    Args:
        fields: a field map as energon's; None: the whole conversation.

    Raises:
        DataError: for a shard that is damaged, compressed, or another than its index.
    """
    parse_entry = reading.conversation(parse) if fields is None else reading.mapped(fields, parse, f"data {path}")
    yield from reading.samples(path, metadata.shards_in(path), parse_entry)


def parse(key: str, turns: Any, image: str | None, source: tuple[str, int]) -> Sample | Rejected:
    """One sample. Tags stay where they are; where an image has none, one is put before the first question.

    Source: alibaba/Pai-Megatron-Patch@a098ca5 examples/llava_mcore/dataset_helpers.py, encode_vqa
    """
    if isinstance(turns, dict):
        problems = keys.unknown(turns | {"image": image}, _KEYS, ())
        if problems:
            return Rejected(key, source, "; ".join(problem.what for problem in problems), _FIX)
        turns = turns.get("conversations")
    record: dict[str, Any] = {"id": key, "conversations": turns}
    if image is not None:
        record |= {"image": image, "conversations": _tagged(turns)}
    return llava.parse(record, source, move_tags=False)


def _tagged(turns: Any) -> Any:
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return turns  # the parser says what is wrong
    texts = [turn.get("value") for turn in turns if isinstance(turn, dict)]
    if not isinstance(texts[0], str) or any(isinstance(text, str) and IMAGE_TAG in text for text in texts):
        return turns
    return [{**turns[0], "value": IMAGE_TAG + texts[0]}, *turns[1:]]
