"""The labels of MiniCPM-V's finetuning, found by the ids of role words: for `compat.labels: minicpm`, never by default.

Upstream stores them moved by one and takes the loss without moving them again; here they stand at their own tokens, as
all labels do. At the first token behind an answer stands its end token once more: upstream learns it twice.

Source: OpenBMB/MiniCPM-V@0dbb566 finetune/dataset.py, conversation_to_ids_llama3, conversation_to_ids_qwen2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlmrun.data.templates import Template
from vlmrun.errors import ConfigError
from vlmrun.ids import IGNORE

Relabel = Callable[[list[int]], list[int]]


def relabel(template: Template, tokenizer: Any) -> Relabel | None:
    """From ids to upstream's labels; None where the template's own are upstream's.

    Raises:
        ConfigError: when upstream has no such template.
    """
    if template.name == "minicpm_v2":
        return None
    if template.name == "minicpm_v25":
        end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
        start = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
        closed = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
        word = _word(tokenizer, "assistant")
        return lambda ids: _labels(ids, _spans(ids, _headers(ids, word, start, closed), 3, end), end)
    if template.name == "minicpm_v26":
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        word = _word(tokenizer, "assistant")
        return lambda ids: _labels(ids, _spans(ids, _after(ids, word, start), 2, end), tokenizer.eos_token_id)
    raise ConfigError(
        f"MiniCPM-V has no template {template.name!r} whose labels could be reproduced",
        "stage.*.compat.labels",
        "minicpm_v2, minicpm_v25 or minicpm_v26, or leave compat.labels null",
    )


def _word(tokenizer: Any, text: str) -> int:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[-1]


def _headers(ids: Sequence[int], word: int, start: int, closed: int) -> list[int]:
    """Places of the role word between the two marks of a header."""
    places = range(1, len(ids) - 1)
    return [i for i in places if ids[i] == word and ids[i - 1] == start and ids[i + 1] == closed]


def _after(ids: Sequence[int], word: int, start: int) -> list[int]:
    """Places of the role word behind the mark of a turn."""
    return [i for i in range(1, len(ids)) if ids[i] == word and ids[i - 1] == start]


def _spans(ids: Sequence[int], places: Sequence[int], skip: int, end: int) -> list[tuple[int, int]]:
    """From behind each header to the first end strictly behind the first token: an empty answer runs on."""
    found = []
    for place in places:
        first = place + skip
        stop = next((i for i in range(first + 1, len(ids)) if ids[i] == end), None)
        if stop is not None:
            found.append((first, stop + 1))
    return found


def _labels(ids: Sequence[int], spans: Sequence[tuple[int, int]], end: int) -> list[int]:
    learnt = {i for first, stop in spans for i in range(first, stop)}
    labels = []
    for i, token in enumerate(ids):
        if i in learnt:
            labels.append(token)
        else:
            labels.append(end if i - 1 in learnt else IGNORE)
    return labels
