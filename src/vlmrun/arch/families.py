"""What is known of each LLM family, a row for each: a new family is one more row.

Everything that treats families differently reads it here: checks, plan, packing, tensor parallelism, formats. A column
that is `None` is not known; `find` gives such a row for a family that is not in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vlmrun.arch import llms
from vlmrun.arch.minicpm import granite_values
from vlmrun.arch.sizes import Llm

LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_EVERY = ("eager", "sdpa", "flash_attention_2", "xformers")


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

    @property
    def own_attention(self) -> bool:
        """Whether it attends in a way of its own, in which no other kernel and no other rank can take part."""
        return self.attention is not None and "sdpa" not in self.attention

    def attention_like(self, wanted: str) -> str:
        """The wanted attention, or eager, which every family has."""
        return wanted if self.attention is None or wanted in self.attention else "eager"


def _llava(name: str) -> dict[str, str]:
    return {"llava": f"llava_{name}", "denseconnector": f"llava_{name}"}


_like_llama = partial(Family, layers=LLAMA_LAYERS, attention=_EVERY, packable=True)

_ROWS = (
    _like_llama(
        "llama",
        sizes=llms.llama,
        tensor_parallel=True,
        architecture="Llama",
        template="vicuna_v1",
        bunny_template="bunny_llama",
        upstream=_llava("llama") | {"kollava": "llava", "bunny": "bunny-llama"},
        megatron=True,
    ),
    _like_llama(
        "mistral",
        sizes=llms.mistral,
        tensor_parallel=True,
        architecture="Mistral",
        template="mistral_instruct",
        upstream=_llava("mistral"),
        megatron=True,
    ),
    # transformers computes its attention in one way only, with biases by distance instead of positions.
    Family(
        "mpt",
        layers=("Wqkv", "out_proj", "up_proj", "down_proj"),
        sizes=llms.mpt,
        attention=("eager",),
        architecture="Mpt",
        decoder="transformer",
        template="mpt",
        upstream=_llava("mpt"),
    ),
    Family(
        "phi",
        layers=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        sizes=llms.phi,
        attention=_EVERY,
        packable=True,
        tensor_parallel=True,
        architecture="Phi",
        template="bunny",
        upstream={"bunny": "bunny-phi"},
    ),
    Family(
        "phi3",
        layers=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        sizes=llms.phi3,
        attention=_EVERY,
        packable=True,
        tensor_parallel=False,  # q, k and v are one layer, which no rank can take whole columns of
        architecture="Phi3",
        template="bunny",
        upstream={"bunny": "bunny-phi3"},
    ),
    _like_llama(
        "qwen2",
        sizes=llms.qwen2,
        tensor_parallel=True,
        architecture="Qwen2",
        template="bunny",
        upstream={"bunny": "bunny-qwen2"},
        megatron=True,
    ),
    _like_llama("qwen3"),
    _like_llama(
        "stablelm",
        sizes=llms.stablelm,
        architecture="StableLM",
        template="bunny",
        upstream={"bunny": "bunny-stablelm"},
    ),
    _like_llama(
        "minicpm",
        sizes=llms.minicpm,
        tensor_parallel=True,
        held_as=granite_values,
        architecture="MiniCPM",
        template="vicuna_v1",
        upstream={"bunny": "bunny-minicpm"},
    ),
    _like_llama("granite", sizes=llms.llama, tensor_parallel=True),
    _like_llama("gemma"),
    # Gemma 2 caps its scores, which sdpa does not.
    Family(
        "gemma2",
        layers=LLAMA_LAYERS,
        attention=("eager", "flash_attention_2"),
        packable=True,
        tensor_parallel=True,
    ),
)
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def find(name: str) -> Family:
    """The row of a family; of one that is not known, a row of None."""
    return FAMILIES.get(name) or Family(name)


def having(column: str) -> list[str]:
    """Names of the families of which something is known to hold, sorted."""
    return sorted(name for name, row in FAMILIES.items() if getattr(row, column))


def is_tied(config: dict[str, Any]) -> bool:
    """Whether an LLM's output head is its input embedding, as its family's layout or its config.json says."""
    known = llm(config)
    config = config.get("text_config", config)
    return known.tied if known is not None else config.get("tie_word_embeddings") is True


def llm(config: dict[str, Any], n_added: int = 0) -> Llm | None:
    """Sizes of an LLM from its config.json; None when the family's layout is not known, or this one departs from it.

    Args:
        n_added: rows that new tokens add to the embedding.
    """
    config = config.get("text_config", config)
    sizes = find(str(config.get("model_type", ""))).sizes
    try:
        return sizes(config, int(config["vocab_size"]) + n_added) if sizes else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
