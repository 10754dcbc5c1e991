"""What is known of each LLM family, a row for each: a new family is one more row.

Everything that treats families differently reads it here: checks, plan, packing, tensor parallelism, formats. A column
that is `None` is not known; `find` gives such a row for a family that is not in the table. Families that the projects
of upstream used stand here, those that came later in `newer`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlmrun.arch import llms, newer
from vlmrun.arch.family import EVERY, Family, like_llama
from vlmrun.arch.minicpm import granite_values
from vlmrun.arch.sizes import Llm


def _llava(name: str) -> dict[str, str]:
    return {"llava": f"llava_{name}", "denseconnector": f"llava_{name}"}


_ROWS = (
    like_llama(
        "llama",
        sizes=llms.llama,
        tensor_parallel=True,
        architecture="Llama",
        template="vicuna_v1",
        bunny_template="bunny_llama",
        upstream=_llava("llama") | {"kollava": "llava", "bunny": "bunny-llama"},
        megatron=True,
    ),
    like_llama(
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
        attention=EVERY,
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
        attention=EVERY,
        packable=True,
        tensor_parallel=False,  # q, k and v are one layer, which no rank can take whole columns of
        architecture="Phi3",
        template="bunny",
        upstream={"bunny": "bunny-phi3"},
    ),
    like_llama(
        "qwen2",
        sizes=llms.qwen2,
        tensor_parallel=True,
        architecture="Qwen2",
        template="bunny",
        upstream={"bunny": "bunny-qwen2"},
        megatron=True,
    ),
    like_llama(
        "stablelm",
        sizes=llms.stablelm,
        architecture="StableLM",
        template="bunny",
        upstream={"bunny": "bunny-stablelm"},
    ),
    like_llama(
        "minicpm",
        sizes=llms.minicpm,
        tensor_parallel=True,
        held_as=granite_values,
        architecture="MiniCPM",
        template="vicuna_v1",
        upstream={"bunny": "bunny-minicpm"},
    ),
    like_llama("granite", sizes=llms.llama, tensor_parallel=True),
    like_llama("gemma", tied=True),
    # Gemma 2 caps its scores, which sdpa does not.
    like_llama(
        "gemma2",
        sizes=partial(llms.dense, defaults=llms.GEMMA, out_bias=None, n_norms=4),
        attention=("eager", "flash_attention_2"),
        tensor_parallel=True,
        tied=True,
        window=4096,
    ),
    *newer.ROWS,
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
    stated = config.get("tie_word_embeddings", find(str(config.get("model_type", ""))).tied)
    return known.tied if known is not None else stated is True


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
