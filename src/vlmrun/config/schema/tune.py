"""What of a model is trained: its parts, adapters, and weights that are held in 4 or 8 bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlmrun import endings
from vlmrun.config.marks import Neutral
from vlmrun.config.schema.base import Factor, Node, Positive

Tuning = Literal["freeze", "full", "lora", "qlora", "new_tokens"]


class Tune(Node):
    """What happens to each part: left alone, trained whole, or trained through LoRA adapters.

    `qlora` is `lora` on an LLM whose frozen weights are held in 4 or 8 bits (`Quant`). `new_tokens` trains the input
    embedding rows of the tokens that `model.image_markers` and `model.new_tokens` added, and nothing else of the LLM.
    Adapters of the tower are folded into it when training ends.
    """

    llm: Tuning
    tower: Literal["freeze", "full", "lora"]
    connector: Literal["freeze", "full"]
    # train, whole or through adapters, only the last N blocks; null: all
    llm_last: Annotated[Positive | None, Neutral(None)]
    tower_last: Annotated[Positive | None, Neutral(None)]  # the same, of the blocks that are run

    @property
    def adapters(self) -> bool:
        """Whether the LLM is trained through adapters."""
        return self.llm in ("lora", "qlora")

    @property
    def sees(self) -> bool:
        """Whether the tower is trained, whole or through adapters."""
        return self.tower != "freeze"


class Lora(Node):
    """Adapter shape, and what of the LLM trains whole beside the adapters.

    `targets`: `all-linear` (all but the output head), last names of linear layers, or a regular expression that the
    whole of a layer's name matches, the part in front (`llm\\..*\\.self_attn\\.(q|k|v|o)_proj`).
    """

    r: Annotated[int, Field(ge=1, le=65_536)]
    alpha: Factor
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: str | list[str]
    modules_to_save: list[str]  # last names of modules of the LLM that train whole, such as embed_tokens
    bias: Literal["none", "all", "lora_only"]  # which biases of the LLM are trained too
    rslora: Annotated[bool, Neutral(False)]  # scale by alpha / sqrt(r) in place of alpha / r
    dora: Annotated[bool, Neutral(False)]  # train the length of every row of a weight apart from its direction
    # other ranks, and other alphas, for layers whose name ends as the expression says: {layers.0.self_attn.q_proj: 16}
    rank_pattern: Annotated[dict[str, Positive], Neutral({})]
    alpha_pattern: Annotated[dict[str, Factor], Neutral({})]

    def rank(self, layer: str) -> int:
        """The rank of a layer: that of the first pattern that matches the end of its name, as PEFT decides it."""
        return endings.value(self.rank_pattern, layer, self.r)


class Quant(Node):
    """How bitsandbytes holds the frozen weights of an LLM under `tune.llm: qlora`."""

    bits: Literal[4, 8]
    type: Literal["nf4", "fp4"]  # of 4 bits
    double: bool  # of 4 bits: the scales are quantized as well
