"""An LLM's frozen linear layers quantized by bitsandbytes, for QLoRA.

Quantized are all linear layers but the output head; upstream's list of layers to leave alone names the
projector only, which takes the place of the default list, so there the head is quantized as well (`head`). In 4 bits
blocks of 64 weights share a scale, and layers whose width is no multiple of 64 are left alone (`layers`). In 8 bits
each row has a scale. Embeddings and normalization keep the run's type, in which the packed layers compute too.

Nothing else is prepared. PEFT's `prepare_model_for_kbit_training` raises the remaining weights to fp32 (DeepSpeed's
bf16 engine would cast them back; Llama's normalization computes in fp32 anyway), freezes (`tune.apply` does) and adds
a hook for re-entrant checkpointing (ours is not).

Source: QLoRA, arXiv:2305.14314; LLM.int8(), arXiv:2208.07339
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun.config import paths
from vlmrun.config.schema import TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.hardware import packages
from vlmrun.model import families, pretrained

_BLOCK = 64  # weights that share a scale in 4 bits
_KEYS = {"bits", "type", "double", "head"}
_OUTLIER = 6.0  # 8 bits: inputs beyond this are multiplied in the run's type, as upstream
Quantised = dict[str, Any]


def of(stage: TrainStage) -> Quantised | None:
    """How a stage holds its LLM: `bits`, `type`, `double`, `head`. None: as it is."""
    if stage.tune.llm != "qlora" or stage.quant is None:
        return None
    return stage.quant.model_dump() | {"head": stage.compat.quantised_head}


def check(kind: Any) -> None:
    """Raises CheckpointError when this is no description by `of`, or bitsandbytes is not installed."""
    if not isinstance(kind, dict) or kind.keys() != _KEYS:
        raise CheckpointError(
            f"unknown quantisation {kind!r}",
            "model.json: quantized",
            "written by another version: merge with that one, or set {bits: 4, type: nf4, double: true, head: false}",
        )
    missing = list(packages.bitsandbytes("tune.llm"))
    if missing:
        raise CheckpointError(missing)


def load(model_class: Any, folder: Path, kind: Quantised, *, dtype: torch.dtype, attention: str) -> Any:
    """Loads a folder of full-precision weights quantized, as `pretrained.load` does otherwise, or one that holds
    them quantized so already.

    Raises:
        CheckpointError: as `check` and `pretrained.load`, when there is no layer to quantize, and when the
            folder holds them quantized otherwise.
    """
    check(kind)
    found = packed(folder)
    if found is not None:
        _check_same(found, kind, folder)
        config = families.read_config(folder)
        llm = pretrained.load(model_class, folder, dtype=dtype, attention=attention, config=config)
        settle(llm, dtype)
        return llm
    chosen, left = _sort_layers(folder, kind)
    how = _settings(kind, left, dtype)
    config = families.read_config(folder)
    llm = pretrained.load(model_class, folder, dtype=dtype, attention=attention, quantization=how, config=config)
    held = settle(llm, dtype)
    if not chosen or held != chosen:
        different = ", ".join(sorted(held ^ chosen)[:3]) or f"no width is a multiple of {_BLOCK}"
        raise CheckpointError(
            f"this LLM cannot be held in {kind['bits']} bits: {different}", str(folder), "use tune.llm: lora"
        )
    return llm


def settle(model: nn.Module, dtype: torch.dtype) -> set[str]:
    """Prepares the quantized layers for training, whatever their files say, and names them."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    found = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}
    for module in found.values():
        # With AVX512-BF16 the first forward in eval mode would repack the weights in place: from then on no gradient
        # passes the layer, and dequantising it gives garbage (platform T9).
        module.support_avx512bf16_for_cpu = False
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            module.compute_type_is_set = True
    return set(found)


def packed(folder: Path) -> dict[str, Any] | None:
    """How a folder's weights are quantized already: `bits`, `type`, `double`. None: they are not."""
    return paths.packed(pretrained.read_json(folder / "config.json", "fetch the model again"))


def _check_same(found: dict[str, Any], kind: Quantised, folder: Path) -> None:
    different = [key for key in found if found[key] != kind[key]]
    if different:
        stated = ", ".join(f"{key}: {found[key]}" for key in found)
        raise CheckpointError(
            f"the weights are held otherwise already ({stated})", str(folder), f"'stage.NAME.quant={{{stated}}}'"
        )


def _settings(kind: Quantised, left: list[str], dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if kind["bits"] == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=_OUTLIER, llm_int8_skip_modules=left)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind["type"],
        bnb_4bit_use_double_quant=kind["double"],
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=left,
    )


def layers(folder: Path, kind: Quantised) -> frozenset[str]:
    """Names of the weights that `load` quantizes; no weight is read.

    Raises:
        CheckpointError: when the folder itself holds them so: nothing can be added to such weights.
    """
    if packed(folder) is not None:
        raise CheckpointError(
            "the LLM that the adapter was trained on is quantized in its folder",
            str(folder),
            "write it out in full first: vlmrun convert STAGE OUT --to native, and merge that",
        )
    return frozenset(f"{name}.weight" for name in _sort_layers(folder, kind)[0])


def rounded(weight: Tensor, dtype: torch.dtype, kind: Quantised) -> Tensor:
    """What a packed layer computes with: one weight quantized and back.

    Args:
        dtype: the type the LLM was loaded in; values are rounded to it before and after.
    """
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_quant
    from bitsandbytes.nn import Params4bit

    held = weight.detach().to(dtype).contiguous()
    if kind["bits"] == 8:
        codes, scales, _ = int8_vectorwise_quant(held.half())
        back: Tensor = codes.float() * scales.float().view(-1, 1) / 127
        return back.to(dtype)
    packed: Any = Params4bit(held, requires_grad=False, quant_type=kind["type"], compress_statistics=kind["double"])
    packed = packed.to("cpu")  # which quantizes it
    return dequantize_4bit(packed.data, packed.quant_state)


def _sort_layers(folder: Path, kind: Quantised) -> tuple[set[str], list[str]]:
    """Names of the linear layers that are packed, and of those that stay.

    4-bit blocks run on over the ends of rows, and bitsandbytes 0.50.2 on a CPU then unpacks with the scales of other
    blocks, without a word (error 0.40 instead of 0.09). So rows must be whole blocks, on a GPU too: the model is one.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        made = families.read_config(folder)
        llm = pretrained.create(AutoModelForCausalLM, made, dtype=torch.float32, attention="eager")
    head = None if kind["head"] else llm.get_output_embeddings()
    block = _BLOCK if kind["bits"] == 4 else 1
    linear = {name: module for name, module in llm.named_modules() if type(module) is nn.Linear}
    chosen = {name for name, module in linear.items() if module is not head and module.in_features % block == 0}
    return chosen, sorted(linear.keys() - chosen)
