"""Proof of an exported adapter: plain peft on the exported model must give the logits that ours gives with it."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.formats import peft as format
from vlmrun.formats import verify
from vlmrun.formats.base import ADAPTER, ADAPTER_CONFIG, How, Model, without_adapter, write_tensors
from vlmrun.formats.instantiate import realise
from vlmrun.formats.load import put_adapter
from vlmrun.model.parts import Loaded
from vlmrun.model.pretrained import quietly, read_by_others
from vlmrun.weights.adapter import CONFIG, Adapter, is_adapter_name
from vlmrun.weights.reader import DTYPES, Reader


def prove(folder: Path, model: Model, how: How) -> dict[str, Any] | None:
    """Writes the model that the adapter is for, loads both in plain transformers and peft, and compares.

    Args:
        folder: the exported adapter.
        model: what it was exported from.

    Returns:
        As `verify.prove`; None when the adapter came without its model, so that there is nothing to compare.

    Raises:
        CheckpointError: saying what differs.
    """
    if model.config is None:
        return None
    dtype, fits = DTYPES[model.description.get("dtype") or "fp32"], format.fits(model, how)
    base = without_adapter(model)
    loaded = realise(base, dtype=dtype, attention=verify.ATTENTION)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".proof-") as name:
        own, plain = Path(name) / "adapter", Path(name) / "model"
        write_tensors(own, model.part("adapter").items(), name=ADAPTER)
        artifact.write_json(own / CONFIG, model.json[ADAPTER_CONFIG])
        loaded.vlm.llm = put_adapter(loaded.vlm.llm, Adapter(own))
        plain.mkdir()
        format.base_format(fits).write(replace(base, tensors=dict(base.tensors), json=dict(base.json)), plain, How())
        with read_by_others(str(folder), "the exported adapter", verify.REPORT):
            if fits == "hf_llava":
                ours = verify.ours(base, loaded)
                theirs = verify.theirs(plain, base, dtype, lambda whole: _with_adapter(whole, folder))
                return verify.compared(base, ours, theirs)
            return _of_llm(loaded, plain, folder, dtype)


def _with_adapter(model: Any, folder: Path) -> Any:
    """The adapter in a model of plain transformers, every tensor of it in its place and none left at random."""
    from peft import PeftModel, get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that transformers 5 deprecates
        found = PeftModel.from_pretrained(model, str(folder)).eval()
    layers = {name for name in get_peft_model_state_dict(found) if is_adapter_name(name)}
    written = {name for name in Reader(folder).names() if is_adapter_name(name)}
    if layers != written:
        raise verify.failed(f"plain peft fills other layers, first {sorted(layers ^ written)[0]}")
    return found


@torch.no_grad()
def _of_llm(loaded: Loaded, plain: Path, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    ids = loaded.tokenizer(verify.QUESTION, return_tensors="pt")["input_ids"]
    with quietly():
        bare = AutoModelForCausalLM.from_pretrained(
            str(plain), dtype=dtype, attn_implementation=verify.ATTENTION, local_files_only=True
        )
    here, there = loaded.vlm.llm(ids).logits, _with_adapter(bare, folder)(ids).logits
    apart = verify.require_close(here.float(), there.float(), dtype)
    return {"logits_apart": apart, "pixels": 0, "prompt_ids": ids.numel(), "generated": 0}
