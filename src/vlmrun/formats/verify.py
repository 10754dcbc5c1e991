"""Proof of an export: plain transformers must see, read and answer as we do, or the export is thrown away.

The same image and question go through the exported processor and through ours, then through both models. Pixels and
token ids must be equal, logits equal up to rounding, and the greedy answer equal up to a choice that rounding decides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmrun.data.encode import encode_prompt
from vlmrun.data.encoder import Encoder
from vlmrun.data.images.transform import ImageTransform
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import IMAGE_TAG, Turn
from vlmrun.errors import CheckpointError
from vlmrun.formats.base import PREPROCESSOR, Model
from vlmrun.formats.instantiate import realise
from vlmrun.formats.llava_text import saved_template
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model.parts import Loaded
from vlmrun.model.pretrained import quietly, said
from vlmrun.weights.reader import DTYPES

QUESTION = "What is in the image?"
ATTENTION = "eager"
N_NEW = 16
# Of the largest logit: a few units in the last place after all layers.
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def prove(folder: Path, model: Model) -> dict[str, Any]:
    """Compares; the two models are in memory one after the other.

    Returns:
        `logits_apart`: greatest difference of a logit, `pixels`, `prompt_ids`, `generated`: how many were
            compared and equal.

    Raises:
        CheckpointError: saying what differs.
    """
    dtype = DTYPES[model.description.get("dtype") or "fp32"]
    own = ours(model, realise(model, dtype=dtype, attention=ATTENTION))
    try:
        found = theirs(folder, model, dtype)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise failed(f"it cannot be used: {said(error)}") from error
    return compared(model, own, found)


def compared(model: Model, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What `prove` returns, of both sides' results."""
    known = model.tensors["llm.model.embed_tokens.weight"].shape[0]
    _same("token ids of the prompt", ours["ids"], theirs["ids"])
    if saved_template(model).keep_question:
        _same("token ids of a dialogue", ours["dialogue"], theirs["dialogue"])
    _same("pixels", ours["pixels"], theirs["pixels"])
    dtype = DTYPES[model.description.get("dtype") or "fp32"]
    apart = require_close(ours["logits"], theirs["logits"][..., :known], dtype)
    same = answered_alike(ours["new"][0], theirs["new"][0], theirs["choices"], dtype)
    return {
        "logits_apart": apart,
        "pixels": ours["pixels"].numel(),
        "prompt_ids": ours["ids"].numel(),
        "generated": same,
    }


def answered_alike(ours: torch.Tensor, theirs: torch.Tensor, choices: torch.Tensor, dtype: torch.dtype) -> int:
    """How many generated ids are equal: all of them, or those before a choice that rounding decides.

    In bf16 two logits are often closer than rounding, and the kernels of one computer choose the one, those of another
    the other. What follows is an answer to another text, and is not compared.

    Args:
        choices: logits of every new id there, (number of new ids, vocabulary).

    Raises:
        CheckpointError: when an id differs that is clearly the likeliest on one of the sides.
    """
    pairs = zip(ours.tolist(), theirs.tolist(), strict=False)
    place = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    if place == len(ours) == len(theirs):
        return place
    if place < min(len(ours), len(theirs)):
        logits = choices[place].float()
        apart = (logits[theirs[place]] - logits[ours[place]]).item()
        # each of the two logits may be as far off as `require_close` allows
        if apart <= 2 * _ROUNDING[dtype] * max(1.0, logits.abs().max().item()):
            return place
    raise failed(f"generated ids differ: {_told(ours, theirs)} here, {_told(theirs, ours)} there")


def require_close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> float:
    """The greatest difference of two models' logits, which rounding must explain."""
    apart = (ours - theirs).abs().max().item()
    limit = _ROUNDING[dtype] * max(1.0, ours.abs().max().item())
    if not apart <= limit:  # nan is not
        raise failed(f"logits are {apart:.3g} apart, rounding would explain {limit:.3g}")
    return apart


def ours(model: Model, loaded: Loaded) -> dict[str, torch.Tensor]:
    """What our code makes of the image and the question, with the model as it is loaded."""
    encoder = Encoder(
        template=saved_template(model),
        tokenizer=loaded.tokenizer,
        image_transform=ImageTransform(loaded.preprocessor),
        aspect=model.description["image_aspect"],
        image_tokens=loaded.vlm.image_tokens,
        max_length=loaded.model.max_length,
    )
    prompts = Prompts(encoder)
    pixels = encoder.image_transform(picture(model), encoder.aspect)[None]
    batch = prompts.collate([prompts.item(_TURNS[:1], pixels, "the proof")])
    given = (batch["input_ids"], batch["attention_mask"], batch["pixels"])
    with torch.no_grad():
        logits = loaded.vlm(*given).logits
        new = loaded.vlm.generate(*given, max_new_tokens=N_NEW, eos_ids=prompts.stop_ids)
    dialogue = encode_prompt(_TURNS, encoder.template, loaded.tokenizer)
    ids = {"ids": batch["input_ids"], "dialogue": torch.tensor([_expanded(dialogue, loaded.vlm.image_tokens())])}
    return {**ids, "pixels": batch["pixels"], "logits": logits.float(), "new": new}


_TURNS = [Turn("user", f"{IMAGE_TAG}\n{QUESTION}"), Turn("assistant", "It is red."), Turn("user", "Are you sure?")]


def _expanded(ids: list[int], n: int) -> list[int]:
    return [each for number in ids for each in [number] * (n if number == IMAGE_TOKEN else 1)]


def theirs(
    folder: Path, model: Model, dtype: torch.dtype, prepare: Callable[[Any], Any] = lambda whole: whole
) -> dict[str, Any]:
    """The same in plain transformers.

    Args:
        prepare: what is done with the model once it is loaded.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    with quietly():
        processor = AutoProcessor.from_pretrained(**place)
        loading: Any = LlavaForConditionalGeneration.from_pretrained(
            **place, dtype=dtype, attn_implementation=ATTENTION, output_loading_info=True
        )
    llava, report = loading
    lost = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if lost:
        raise failed(f"tensors are missing or unexpected: {', '.join(lost[:3])}")
    said = _messages(picture(model))
    batch, dialogue = (processor.apply_chat_template(each, **_AS_TENSORS) for each in (said[:1], said))
    llava = prepare(llava)
    with torch.no_grad():
        logits = llava.eval()(**batch).logits.float()
        answer = llava.generate(
            **batch,
            do_sample=False,
            num_beams=1,
            max_new_tokens=N_NEW,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids, marker = batch["input_ids"], llava.config.image_token_id
    return {
        "ids": ids.masked_fill(ids == marker, IMAGE_TOKEN),
        "dialogue": dialogue["input_ids"].masked_fill(dialogue["input_ids"] == marker, IMAGE_TOKEN),
        "pixels": batch["pixel_values"],
        "logits": logits,
        "new": answer.sequences[:, ids.shape[1] :],
        "choices": torch.cat(answer.logits),
    }


_AS_TENSORS = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def _messages(shown: Image.Image) -> list[dict[str, Any]]:
    """The same turns as a processor takes them."""
    content = [{"type": "image", "image": shown}, {"type": "text", "text": QUESTION}]
    return [
        {"role": "user", "content": content},
        *({"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in _TURNS[1:]),
    ]


def picture(model: Model) -> Image.Image:
    """An image that is not square, has no two equal rows, and needs to be resized."""
    edge = ImageTransform(model.json[PREPROCESSOR]).size[0]
    height, width = edge * 3 // 2, edge * 2
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // height, columns * 255 // width, (rows * columns) % 251]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _same(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if ours.shape != theirs.shape or not torch.equal(ours, theirs):
        raise failed(f"{what} differ: {_told(ours, theirs)} here, {_told(theirs, ours)} there")


def _told(values: torch.Tensor, others: torch.Tensor) -> str:
    """A few numbers around the first difference, or the shape."""
    if values.dtype != torch.long:
        return f"{list(values.shape)}"
    pairs = zip(values.flatten().tolist(), others.flatten().tolist(), strict=False)
    place = next((index for index, (a, b) in enumerate(pairs) if a != b), min(values.numel(), others.numel()))
    return f"{values.flatten()[max(0, place - 3) : place + 4].tolist()} at {place}"


REPORT = "report it; --no-proof writes the folder all the same"


def failed(what: str) -> CheckpointError:
    """That an export is not what it was made from."""
    return CheckpointError(
        f"the export does not answer as the model does in plain transformers: {what}",
        "nothing was written",
        REPORT,
    )
