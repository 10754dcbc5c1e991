"""The `<image>` token that transformers' Llava marks pictures with, and its row in the embedding.

vlmrun has no such token: pictures are cut out of the text before it is tokenised. A tokenizer that has one keeps it.
Otherwise it gets the first id behind all others, in a spare row if there is one, else in a new row which is the mean
of all others: its logit is then the mean of the logits and never the greatest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.checkpoints.formats.base import LLM_CONFIG, Lazy, Model
from vlmrun.checkpoints.formats.realise import tokenizer as load
from vlmrun.checkpoints.formats.realise import tokenizer_is_as_its_files
from vlmrun.data.sample import IMAGE_TAG

_MATRICES = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")
_FAST = "llm/tokenizer.json"


def add(model: Model, folder: Path) -> dict[str, Any]:
    """Writes the tokenizer with the token into `folder`, and gives the model its row.

    Returns:
        `id`; `token` and `row`: whether they are new.
    """
    _write(model, folder)
    values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    known = _ids(values)
    n_rows = model.tensors[_MATRICES[0]].shape[0]
    if IMAGE_TAG in known:
        return {"id": known[IMAGE_TAG], "token": False, "row": False}
    number = max(known.values()) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    values["added_tokens"].append({"id": number, "content": IMAGE_TAG, **flags, "special": True})
    artifact.write_json(folder / "tokenizer.json", values)
    _declare(folder / "tokenizer_config.json", number)
    if number >= n_rows:
        _resize(model, number + 1, _with_mean)
    return {"id": number, "token": True, "row": number >= n_rows}


def remove(model: Model, added: dict[str, Any]) -> None:
    """Takes back what `add` added; the tokenizer's files are changed when they are written."""
    if added["row"]:
        _resize(model, added["id"], lambda tensor, rows: tensor[:rows].clone())
    if added["token"]:
        model.json |= _without_token(model.files)


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


def _declare(path: Path, number: int) -> None:
    values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "added_tokens_decoder" in values:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        values["added_tokens_decoder"][str(number)] = {"content": IMAGE_TAG, **flags, "special": True}
    artifact.write_json(path, values | {"image_token": IMAGE_TAG})


def _without_token(given: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The two files as they were before, as values; they are no longer carried along as files."""
    fast = json.loads(given.pop(_FAST).read_text("utf-8"))
    fast["added_tokens"] = [token for token in fast["added_tokens"] if token["content"] != IMAGE_TAG]
    config = json.loads(given.pop("llm/tokenizer_config.json").read_text("utf-8"))
    config.pop("image_token", None)
    decoder = config.get("added_tokens_decoder", {})
    for number in [key for key, token in decoder.items() if token["content"] == IMAGE_TAG]:
        del decoder[number]
    return {_FAST: fast, "llm/tokenizer_config.json": config}


def _with_mean(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    mean = tensor.float().mean(0).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - len(tensor), -1)])


def _resize(model: Model, rows: int, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    for name in _MATRICES:
        if name in model.tensors:
            old = model.tensors[name]
            model.tensors[name] = Lazy((rows, *old.shape[1:]), old.dtype, _changed(old, rows, change))
    values = model.json[LLM_CONFIG]
    model.json = model.json | {LLM_CONFIG: values | {"vocab_size": rows}}


def _changed(
    old: Lazy, rows: int, change: Callable[[torch.Tensor, int], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    return lambda: change(old.load(), rows)



