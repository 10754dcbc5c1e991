"""What a task of lmms-eval asks, as turns and images. Free of lmms-eval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlmrun.data.sample import IMAGE_TAG, Turn
from vlmrun.errors import DataError
from vlmrun.serve.messages import Sampling

_NEUTRAL = {"num_beams": 1, "n": 1, "return_dict_in_generate": False}
_LONGEST = 1024  # tokens of an answer whose task gives no bound, as lmms-eval's own models have it


@dataclass(frozen=True)
class Conversation:
    """Turns with an image tag for every image; images as the task has them."""

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Wanted:
    """How an answer is generated."""

    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]


def of_text(text: str, visuals: Iterable[Any], where: str) -> Conversation:
    """The simple interface: a text and its images, which come first unless the text has a tag for each.

    Raises:
        DataError: for a visual that is no image, and for another number of tags than images.
    """
    images = tuple(_image(visual, where) for visual in visuals)
    n_tags = text.count(IMAGE_TAG)
    if n_tags not in (0, len(images)):
        raise DataError(
            f"the task's text has {n_tags} {IMAGE_TAG} tags, but {len(images)} images",
            where,
            "a tag for each image, or none",
        )
    tags = f"{IMAGE_TAG}\n" * len(images) if n_tags == 0 else ""
    return Conversation((Turn("user", tags + text),), images)


def of_messages(messages: Sequence[Mapping[str, Any]], where: str) -> Conversation:
    """The chat interface: messages of text and images in their order.

    Raises:
        DataError: for a role or a kind of content that a model of vlmrun does not take.
    """
    turns: list[Turn] = []
    images: list[Image.Image] = []
    for message in messages:
        role = message["role"]
        if role not in ("user", "assistant"):
            fix = "--force_simple, or a task without that message"
            raise DataError(f"the task has a message of role {role!r}", where, fix)
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append(part["text"])
            elif part["type"] == "image":
                images.append(_image(part["url"], where))
                parts.append(IMAGE_TAG)
            else:
                raise DataError(f"the task shows {part['type']}", where, "a task of images and text")
        turns.append(Turn(role, "\n".join(parts)))
    return Conversation(tuple(turns), tuple(images))


def wanted(asked: Mapping[str, Any], where: str) -> Wanted:
    """A task's `generation_kwargs`.

    Raises:
        DataError: for a value that would have another effect here, or none.
    """
    given = dict(asked)
    until = given.pop("until", ())
    max_tokens = int(given.pop("max_new_tokens", None) or given.pop("max_gen_toks", None) or _LONGEST)
    temperature = float(given.pop("temperature", 0) or 0)
    if given.pop("do_sample", None) is False:
        temperature = 0.0
    sampling = Sampling(
        temperature=temperature,
        top_p=float(given.pop("top_p", None) or 1.0) if temperature else 1.0,
        top_k=int(given.pop("top_k", None) or 0) if temperature else 0,
        seed=0 if temperature else None,
    )
    for name in ("top_p", "top_k", "image_aspect_ratio"):  # without effect when greedy; our models know their own fit
        given.pop(name, None)
    unknown = [name for name, value in given.items() if value is not None and value != _NEUTRAL.get(name)]
    if unknown:
        raise DataError(
            f"the task sets {', '.join(unknown)}, which vlmrun's engine does not take",
            where,
            f"--gen_kwargs {','.join(f'{name}={_NEUTRAL.get(name)}' for name in unknown)}",
        )
    return Wanted(sampling, max_tokens, (until,) if isinstance(until, str) else tuple(until))


def _image(visual: Any, where: str) -> Image.Image:
    if not isinstance(visual, Image.Image):
        raise DataError(f"the task shows a {type(visual).__name__}, not an image", where, "a task of images and text")
    return visual
