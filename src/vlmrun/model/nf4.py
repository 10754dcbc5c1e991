"""nf4: an LLM's frozen linear layers held in 4 bits by bitsandbytes, for QLoRA.

In 4 bits are all linear layers but the output head, in blocks of 64 weights with double quantisation; layers whose
width is no multiple of 64 are left alone (`layers`). Embeddings, normalisation and the head keep the run's type, in
which the 4-bit layers compute too. LLaVA differs: its list of layers to leave alone names the projector only, which
takes the place of the default list, so its head is in 4 bits as well.

Nothing else is prepared. PEFT's `prepare_model_for_kbit_training` raises the remaining weights to fp32 (DeepSpeed's
bf16 engine would cast them back; Llama's normalisation computes in fp32 anyway), freezes (`tune.apply` does) and adds
a hook for re-entrant checkpointing (ours is not).

Source: QLoRA, arXiv:2305.14314
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun.errors import CheckpointError
from vlmrun.hardware import checks
from vlmrun.model import pretrained

NF4 = "nf4"
_BLOCK = 64  # weights that share a scale


def check(kind: str) -> None:
    """Raises CheckpointError when `kind` is another than nf4, or bitsandbytes is not installed."""
    if kind != NF4:
        raise CheckpointError(f"unknown quantisation {kind!r}", "model.llm", f"this version knows {NF4}")
    missing = list(checks.quantisation("tune.llm"))
    if missing:
        raise CheckpointError(missing)


def load(model_class: Any, folder: Path, *, dtype: torch.dtype, attention: str) -> Any:
    """Loads a folder of full-precision weights into 4 bits, as `pretrained.load` does otherwise.

    Raises:
        CheckpointError: as `check` and `pretrained.load`, and when there is no layer to hold in 4 bits.
    """
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    chosen, left = _sort_layers(folder)
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=left,
    )
    llm = pretrained.load(model_class, folder, dtype=dtype, attention=attention, quantization=how)
    packed = {name: module for name, module in llm.named_modules() if isinstance(module, Linear4bit)}
    if not chosen or packed.keys() != chosen:
        different = ", ".join(sorted(packed.keys() ^ chosen)[:3]) or f"no width is a multiple of {_BLOCK}"
        raise CheckpointError(f"this LLM cannot be held in 4 bits: {different}", str(folder), "use tune.llm: lora")
    for module in packed.values():
        # With AVX512-BF16 the first forward in eval mode would repack the weights in place: from then on no gradient
        # passes the layer, and dequantising it gives garbage (platform T9).
        module.support_avx512bf16_for_cpu = False
    return llm


def layers(folder: Path) -> frozenset[str]:
    """Names of the weights that `load` holds in 4 bits; no weight is read."""
    return frozenset(f"{name}.weight" for name in _sort_layers(folder)[0])


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """What a 4-bit layer computes with: one weight to 4 bits and back.

    Args:
        dtype: the type the LLM was loaded in; values are rounded to it before and after.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    packed = Params4bit(weight.detach().to(dtype).contiguous(), requires_grad=False, quant_type=NF4).to("cpu")
    return dequantize_4bit(packed.data, packed.quant_state)


def _sort_layers(folder: Path) -> tuple[set[str], list[str]]:
    """Names of the linear layers that go into 4 bits, and of those that stay.

    Blocks run on over the ends of rows, and bitsandbytes 0.50.2 on a CPU then unpacks with the scales of other blocks,
    without a word (error 0.40 instead of 0.09). So rows must be whole blocks, on a GPU too: the model is one.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        llm = pretrained.create(AutoModelForCausalLM, made, dtype=torch.float32, attention="eager")
    head = llm.get_output_embeddings()
    linear = {name: module for name, module in llm.named_modules() if type(module) is nn.Linear}
    chosen = {name for name, module in linear.items() if module is not head and module.in_features % _BLOCK == 0}
    return chosen, sorted(linear.keys() - chosen)
