"""The `<image>` token that transformers' Llava marks images with, and its row in the embedding.

vlmrun has no such token: images are cut out of the text before it is tokenized. A tokenizer that has one keeps it.
Otherwise it gets the first id behind all others, in a spare row if there is one, else in a new row which is the mean
of all others: its logit is then the mean of the logits and never the greatest.

The exported tokenizer is declared a plain fast one. Named after its family, transformers 5 would build it from its
vocabulary again, with other rules than its tokenizer.json has (a SentencePiece one loses the space before a stretch of
text).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.data.sample import IMAGE_TAG
from vlmrun.errors import CheckpointError
from vlmrun.formats.base import LLM_CONFIG, Model
from vlmrun.formats.instantiate import tokenizer as load
from vlmrun.formats.instantiate import tokenizer_is_as_its_files
from vlmrun.weights.lazy import Lazy, stack, whole

_MATRICES = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")
_FAST, _CONFIG = "llm/tokenizer.json", "llm/tokenizer_config.json"
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
_PLAIN = "PreTrainedTokenizerFast"


def add(model: Model, folder: Path) -> dict[str, Any]:
    """Writes the tokenizer with the token into `folder`, and gives the model its row.

    Returns:
        `id`; `token` and `row`: whether they are new; `class`: what the tokenizer was declared before.
    """
    _write(model, folder)
    values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    known = _ids(values)
    n_rows = model.tensors[_MATRICES[0]].shape[0]
    number = known.get(IMAGE_TAG, max(known.values()) + 1)
    told = {"id": number, "class": _declare(folder / "tokenizer_config.json", number)}
    if IMAGE_TAG in known:
        return told | {"token": False, "row": False}
    values["added_tokens"].append({"id": number, "content": IMAGE_TAG, **_FLAGS, "special": True})
    artifact.write_json(folder / "tokenizer.json", _numbered(values, number))
    if number >= n_rows:
        _resize(model, number + 1, _with_mean)
    return told | {"token": True, "row": number >= n_rows}


def _numbered(values: dict[str, Any], number: int) -> dict[str, Any]:
    """The tokenizer, if it gives its last token that id; one with gaps in its ids does so if the vocabulary has it."""
    if _id_in(values) != number and isinstance(values["model"]["vocab"], dict):
        values["model"]["vocab"][IMAGE_TAG] = number
    if _id_in(values) != number:
        raise CheckpointError(
            f"the tokenizer cannot give {IMAGE_TAG} the id {number}", "tokenizer.json", "its ids have gaps: --to llava"
        )
    return values


def _id_in(values: dict[str, Any]) -> int | None:
    from tokenizers import Tokenizer

    found: int | None = Tokenizer.from_str(json.dumps(values)).token_to_id(IMAGE_TAG)
    return found


def remove(model: Model, added: dict[str, Any]) -> None:
    """Takes back what `add` added; the tokenizer's files are changed when they are written."""
    if added["row"]:
        _resize(model, added["id"], lambda old, rows: old.between(0, rows))
    model.json |= _undeclared(model.files, added)


def _ids(values: dict[str, Any]) -> dict[str, int]:
    vocabulary = values["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((p[0], i) for i, p in enumerate(vocabulary))
    return dict(pairs) | {token["content"]: token["id"] for token in values["added_tokens"]}


def _write(model: Model, folder: Path) -> None:
    """The tokenizer's files as they are, or made, when it is another than its files say."""
    if _FAST in model.files and tokenizer_is_as_its_files(model):
        for place, source in model.files.items():
            if place.startswith("llm/tokenizer") or place.endswith(("special_tokens_map.json", "added_tokens.json")):
                shutil.copyfile(source, folder / Path(place).name)
        return
    load(model).save_pretrained(str(folder))


def _declare(path: Path, number: int) -> str | None:
    """Declares the tokenizer and its new token; returns the class it was declared before."""
    values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "added_tokens_decoder" in values:
        values["added_tokens_decoder"].setdefault(str(number), {"content": IMAGE_TAG, **_FLAGS, "special": True})
    artifact.write_json(path, values | {"image_token": IMAGE_TAG, "tokenizer_class": _PLAIN})
    before: str | None = values.get("tokenizer_class")
    return before


def _undeclared(given: dict[str, Path], added: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The two files as they were before, as values; they are no longer carried along as files."""
    fast = json.loads(given.pop(_FAST).read_text("utf-8"))
    config = json.loads(given.pop(_CONFIG).read_text("utf-8"))
    config.pop("image_token", None)
    if added["token"]:
        fast["added_tokens"] = [token for token in fast["added_tokens"] if token["content"] != IMAGE_TAG]
        config.get("added_tokens_decoder", {}).pop(str(added["id"]), None)
        if isinstance(fast["model"]["vocab"], dict):
            fast["model"]["vocab"].pop(IMAGE_TAG, None)
    if added["class"] is not None:
        config["tokenizer_class"] = added["class"]
    else:
        del config["tokenizer_class"]
    return {_FAST: fast, _CONFIG: config}


def _with_mean(old: Lazy, rows: int) -> Lazy:
    def mean() -> torch.Tensor:
        total = torch.zeros(old.shape[1:], dtype=torch.float64)
        for piece in old.pieces():
            total += piece.double().sum(0)
        return (total / len(old)).to(old.dtype).expand(rows - len(old), -1)

    return stack([old, whole((rows - len(old), *old.shape[1:]), old.dtype, mean)])


def _resize(model: Model, rows: int, change: Callable[[Lazy, int], Lazy]) -> None:
    for name in _MATRICES:
        if name in model.tensors:
            model.tensors[name] = change(model.tensors[name], rows)
    values = model.json[LLM_CONFIG]
    model.json = model.json | {LLM_CONFIG: values | {"vocab_size": rows}}
