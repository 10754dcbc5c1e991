"""Keys of records and messages: each is read, known to mean nothing for training, or refused by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from vlmrun.data.sample import Role
from vlmrun.errors import DataError, Problem, closest

# Where a record of a published data set comes from, and what others noted about it.
_NOTES_OF_RECORDS = """
    author avatarUrl capfusion category categories clip_score coco_id created custom_instruction data_name data_source
    data_type dataset dataset_name date difficulty hash idx index info key lang language length license md5
    meta meta_data metadata model model_name num_tokens num_turns origin page qid quality question_id rounds score
    sha256 similarity skill skip_prompt_formatting source split subset subtask task task_type timestamp title toxic
    topic type uid unsafe url uuid version views
"""
# The same about an image: they say nothing only beside `image`.
_NOTES_OF_IMAGES = """
    blip_caption caption height height_list image_height image_id image_size image_width original_image width
    width_list
"""
# What other programs write, and what to write here.
_IMAGE_KEYS = """
    file_name filename image_base64 image_bytes image_file image_name image_path image_url img img_path imgs photo
"""
_LOSS_KEYS = "learn loss loss_mask mask masked supervised train train_on trainable trained weight"
_ELSEWHERE = {
    key: fix
    for words, fix in (
        (_IMAGE_KEYS, "write the file's name under `image`"),
        ("images image_list image_paths", "data.<name>.format=sharegpt reads it, or write the names under `image`"),
        ("video videos video_path audio audios speech", "vlmrun trains on images and text: leave such records out"),
        ("tools functions function_call tool_calls", "calls of tools are not trained: leave such records out"),
        ("system_prompt system_message sys_prompt", "write the text under `system`"),
        (_LOSS_KEYS, "write `loss: false` in a message to keep its answer from being trained"),
    )
    for key in words.split()
}
_ELSEWHERE |= dict.fromkeys(("picture", "pictures"), _ELSEWHERE["img"])
_NOTES, _ABOUT_IMAGE = frozenset((*_NOTES_OF_RECORDS.split(), "licence")), frozenset(_NOTES_OF_IMAGES.split())
_OF_MESSAGES = frozenset(("id", "index", "lang", "language", "markdown", "model", "time", "timestamp"))
_SUPERVISED = ("loss", "weight")
_EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]", "{}")


def unknown(record: Mapping[str, Any], understood: Collection[str], ignored: Sequence[str]) -> list[Problem]:
    """Keys of a record that would be dropped although they say something.

    Args:
        understood: what the format reads.
        ignored: names and patterns of `data.NAME.ignore_keys`.
    """
    notes = _NOTES | _ABOUT_IMAGE if record.get("image") else _NOTES
    odd = [
        key
        for key, value in record.items()
        if key not in understood
        and key not in notes
        and not key.startswith("_")
        and not _says_nothing(value)
        and not any(fnmatchcase(key, pattern) for pattern in ignored)
    ]
    return [Problem(f"key `{key}` of the record is not read", fix=_fix(key, understood)) for key in odd]


def check_message(
    message: Mapping[str, Any], number: int, understood: Collection[str], ignored: Sequence[str] = ()
) -> None:
    """Raises a DataError for a key of a message that would be dropped although it says something."""
    for key, value in message.items():
        if key in understood or key in _SUPERVISED or key in _OF_MESSAGES or key.startswith("_"):
            continue
        if _says_nothing(value) or any(fnmatchcase(key, pattern) for pattern in ignored):
            continue
        raise DataError(f"key `{key}` of message {number} is not read", fix=_fix(key, (*understood, *_SUPERVISED)))


def supervised(message: Mapping[str, Any], number: int, side: Role) -> bool:
    """Whether an answer is trained: `loss: false`, or `weight: 0`, keeps it out.

    Raises:
        DataError: for another value, and for a question or a system text that is to be trained.
    """
    given = {key: message[key] for key in _SUPERVISED if message.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            fix = "loss: true or false" if key == "loss" else "weight: 1 or 0; shares of a sample are not trained"
            raise DataError(f"`{key}` of message {number} is {value!r}", fix=fix)
        if side != "assistant" and value:
            noun = "system text" if side == "system" else "question"
            fix = f"leave `{key}` out there: a {noun} is what the model is given"
            raise DataError(f"message {number} is a {noun} with `{key}: {value}`", fix=fix)
    if len(set(map(bool, given.values()))) > 1:
        raise DataError(f"`loss` and `weight` of message {number} contradict each other", fix="keep one of them")
    return all(given.values())


def _says_nothing(value: Any) -> bool:
    """Writers of tables give every record every key."""
    return any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in _EMPTY)


def _fix(key: str, understood: Collection[str]) -> str:
    ignore = f"data.<name>.ignore_keys=[{key}] drops it"
    if key in _ELSEWHERE:
        return f"{_ELSEWHERE[key]}; {ignore}"
    near = closest(key, understood)
    return f"did you mean `{near}`? {ignore}" if near else ignore
