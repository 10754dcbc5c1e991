"""Whole models of a wanted size, with Llama's names and shapes, random numbers and a tokenizer of a few words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Bits per weight: bf16. Llama's names and shapes, so that mergekit takes them for what they are.
HIDDEN, INNER, VOCABULARY, RANK = 1024, 4096, 32000, 64
_TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 64, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "initializer_factor": 1.0, "initializer_range": 0.02,
    "num_channels": 3,
}  # fmt: skip
_PICTURES = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 32}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
_MODEL = {
    "llm": {"_target_": "vlmrun.model.llm.load", "path": "llm"},
    "tower": {"_target_": "vlmrun.model.towers.clip.Clip", "path": "tower", "layers": [-2]},
    "connector": {"_target_": "vlmrun.model.connectors.mlp.MLP", "depth": 2},
    "template": "vicuna_v1", "max_length": 2048, "image_markers": None, "new_tokens": [], "tiles": None,
}  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


def write(folder: Path, n_bytes: int, *, seed: int = 0, one_tensor: bool = False) -> Shapes:
    """Writes a weights folder of ours, its LLM in about four shards; gives the shapes of the LLM."""
    shapes = _llm(n_bytes // 2, one_tensor)
    parts = {"llm": shapes, "tower": _tower(), "connector": _connector()}
    for number, (part, each) in enumerate(parts.items()):
        _tensors(folder / part, each, seed * len(parts) + number)
    _json(folder / "llm/config.json", _llm_config(shapes))
    _json(folder / "tower/config.json", _TOWER)
    _json(folder / "tower/preprocessor_config.json", _PICTURES)
    write_tokenizer(folder / "llm")
    description = {"format": "vlmrun-1", "model": _MODEL, "image_aspect": "square", "dtype": "bf16"}
    _json(folder / "model.json", description | {"template": _template(), "adapter": None, "quantized": None})
    return shapes


def write_lora(folder: Path, model: Path, shapes: Shapes) -> None:
    """The same model with an adapter on every linear layer of its LLM."""
    import torch
    from safetensors.torch import save_file

    (folder / "adapter").mkdir(parents=True)
    for part in ("llm", "tower", "connector"):
        (folder / part).symlink_to(model / part)
    _json(folder / "model.json", json.loads((model / "model.json").read_text()) | {"adapter": "adapter"})
    tensors = {}
    for name, shape in shapes.items():
        if "_proj" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, shape[1])
            tensors[f"{stem}.lora_B.weight"] = torch.randn(shape[0], RANK) * 0.01
    place = folder / "adapter"
    save_file(tensors or {"base_model.model.none": torch.zeros(1)}, place / "adapter_model.safetensors")
    _json(place / "adapter_config.json", {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK})


def _llm(n_weights: int, one_tensor: bool) -> Shapes:
    if one_tensor:
        return {"model.embed_tokens.weight": (n_weights // HIDDEN, HIDDEN), "model.norm.weight": (HIDDEN,)}
    vocabulary = max(512, min(VOCABULARY, n_weights // 8 // HIDDEN))
    outer = ("lm_head.weight", "model.embed_tokens.weight")
    shapes: Shapes = dict.fromkeys(outer, (vocabulary, HIDDEN))
    layer = {
        **{f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")},
        "mlp.down_proj.weight": (HIDDEN, INNER),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    count = max(1, round((n_weights - 2 * vocabulary * HIDDEN) / (4 * HIDDEN**2 + 3 * HIDDEN * INNER)))
    for number in range(count):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (HIDDEN,)}


def _llm_config(shapes: Shapes) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": sum(name.endswith("q_proj.weight") for name in shapes), "num_attention_heads": 16,
        "num_key_value_heads": 16, "dtype": "bfloat16", "vocab_size": shapes["model.embed_tokens.weight"][0],
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
    }  # fmt: skip


def _tower() -> Shapes:
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        state = CLIPVisionModel(CLIPVisionConfig(**_TOWER)).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()}


def _connector() -> Shapes:
    width = int(str(_TOWER["hidden_size"]))
    return {
        "layers.0.weight": (HIDDEN, width),
        "layers.0.bias": (HIDDEN,),
        "layers.2.weight": (HIDDEN, HIDDEN),
        "layers.2.bias": (HIDDEN,),
    }


def _tensors(folder: Path, shapes: Shapes, seed: int) -> None:
    import torch

    from vlmrun.weights.blocks import blocks
    from vlmrun.weights.writer import Writer

    def random(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[torch.Tensor]:
        for start, stop in blocks(shape):
            yield torch.randn(stop - start, *shape[1:], generator=generator).bfloat16()

    total = 2 * sum(math.prod(shape) for shape in shapes.values())
    types = {name: (torch.bfloat16, shape) for name, shape in sorted(shapes.items())}
    with Writer(folder, types, max_shard_bytes=max(total / 4, 1e7)) as writer:
        for number, (name, (_, shape)) in enumerate(types.items()):
            writer.write(name, random(shape, torch.Generator().manual_seed(1000 * seed + number)))


def write_tokenizer(folder: Path) -> None:
    """One token for each byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        word: number
        for number, word in enumerate(("<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())))
    }
    plain = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)


def _template() -> dict[str, Any]:
    from vlmrun.data import templates

    return templates.get("vicuna_v1").to_dict()


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))
