"""What of a model is trained: its parts, adapters, and weights that are held in 4 or 8 bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlmrun.config.schema.base import Node, Positive

Tuning = Literal["freeze", "full", "lora", "qlora", "new_tokens"]


class Tune(Node):
    """What happens to each part: left alone, trained whole, or trained through LoRA adapters.

    `qlora` is `lora` on an LLM whose frozen weights are held in few bits (`Quant`). `new_tokens` trains the input
    embedding rows of the tokens that `model.image_markers` and `model.new_tokens` added, and nothing else of the LLM.
    """

    llm: Tuning
    tower: Literal["freeze", "full"]
    connector: Literal["freeze", "full"]

    @property
    def adapters(self) -> bool:
        """Whether the LLM is trained through adapters."""
        return self.llm in ("lora", "qlora")


class Lora(Node):
    """Adapter shape, and what of the LLM trains whole beside the adapters.

    `targets`: `all-linear` (all but the output head), last names of the LLM's linear layers, or a regular expression
    that the whole of a layer's name matches, `llm.` in front (`llm\\..*\\.self_attn\\.(q|k|v|o)_proj`).
    """

    r: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: str | list[str]
    modules_to_save: list[str]  # last names of modules of the LLM that train whole, such as embed_tokens
    bias: Literal["none", "all", "lora_only"]  # which biases of the LLM are trained too


class Quant(Node):
    """How bitsandbytes holds the frozen weights of an LLM under `tune.llm: qlora`."""

    bits: Literal[4, 8]
    type: Literal["nf4", "fp4"]  # of 4 bits
    double: bool  # of 4 bits: the scales are quantized as well
