"""What one LLM family is: a row of `families`, or of `newer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vlmrun.arch.sizes import Llm

LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY = ("eager", "sdpa", "flash_attention_2", "xformers")


@dataclass(frozen=True)
class Family:
    """An LLM family by its `model_type`.

    Attributes:
        layers: last names of the linear layers of a block; needed where the weights are not there to be read.
        sizes: from config.json and rows of the embedding to sizes; None: `plan` asks a model without weights.
        attention: values of `hardware.attention` that transformers computes it with.
        packable: samples that share a row stay apart. tests/unit/model/test_packed_rows.py tries each.
        tensor_parallel: transformers plans every shared layer as whole columns or rows, which is what
            train/engine/tensor_parallel.py cuts. tests/unit/checks/test_engines_rules.py compares with transformers.
        held_as: from its config.json to that of the family which transformers holds it as.
        architecture: what its classes are called, in front of `ForCausalLM`.
        decoder: the attribute of such a class that holds the decoder.
        template: that its models were published with by upstream's projects.
        bunny_template: the same under Bunny, where that is another one.
        upstream: name of a project of upstream that knows it -> the `model_type` that this project gives it.
        megatron: Megatron-Core's LLaVA can hold it: RMSNorm, gated SiLU, rotary positions, and nothing more.
        tied: its head is its embedding where config.json does not say.
        window: how far back its windowed layers look where config.json does not say.
        beside: what else than attention looks at other positions; ranks cannot share it.
        experts: its MLPs are experts, tensors that are no linear layers: they have no adapters and are not quantized.
        refuse: from its config.json to why such a model cannot be a part of a VLM; None: it can.
    """

    name: str
    layers: tuple[str, ...] | None = None
    sizes: Callable[[dict[str, Any], int], Llm | None] | None = None
    attention: tuple[str, ...] | None = None
    packable: bool | None = None
    tensor_parallel: bool | None = None
    held_as: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    architecture: str | None = None
    decoder: str = "model"
    template: str | None = None
    bunny_template: str | None = None
    upstream: Mapping[str, str] = field(default_factory=dict)
    megatron: bool | None = None
    tied: bool = False
    window: int | None = None
    beside: str | None = None
    experts: bool = False
    refuse: Callable[[dict[str, Any]], str | None] | None = None

    @property
    def own_attention(self) -> bool:
        """Whether it attends in a way of its own, in which no other kernel and no other rank can take part."""
        return self.attention is not None and "sdpa" not in self.attention

    def attention_like(self, wanted: str) -> str:
        """The wanted attention, or eager, which every family has."""
        return wanted if self.attention is None or wanted in self.attention else "eager"


like_llama = partial(Family, layers=LLAMA_LAYERS, attention=EVERY, packable=True)
