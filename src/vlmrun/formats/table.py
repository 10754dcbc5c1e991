"""All formats of this package, in the order in which a folder is tried. Those who read or write models come here."""

from __future__ import annotations

from vlmrun.formats import (
    bnb,
    delta,
    gguf,
    hf,
    hf_llava,
    megatron,
    minicpm,
    native,
    peft,
    upstream,
)
from vlmrun.formats.registry import FORMATS, detect, find, get, odd, read, register

__all__ = ["FORMATS", "detect", "find", "get", "odd", "read", "register"]

register("native", native)
register("minicpm", minicpm)
register("hf_llava", hf_llava)
register("delta", delta)
register("denseconnector", upstream.DENSE)
register("bunny", upstream.BUNNY)
register("kollava", upstream.KOLLAVA)
register("llava", upstream.LLAVA)
register("mm_projector", upstream.PROJECTOR_ONLY)
register("peft", peft)
register("megatron", megatron)
register("gguf", gguf)
register("bnb4", bnb.FOUR)
register("bnb8", bnb.EIGHT)
register("hf", hf)
