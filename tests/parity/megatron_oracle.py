"""Megatron-Core's own LLaVA parts on CPU ranks, filled from a folder that we wrote: an oracle for its layout.

Megatron-Core 0.16.1 has no CPU mode: it is told that there is a device (`current_device`), that no random numbers are
drawn on it (an inference tracker), and that `Tensor.cuda` is nothing. All fusions are off, and its local layers are
used, which hold their norms beside the linear layers instead of in them.

Source: the specification, part C; megatron-core 0.16.1 models/gpt, models/vision
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import torch

LAYER_NORMS = (
    (".self_attention.linear_qkv.layer_norm_", ".input_layernorm."),
    (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
)


def logits(folder: str, ids: list[int], pixels: list[Any], image_at: int) -> list[Any]:
    """Logits of one sequence; each rank calls it and gets all of them, padding rows included.

    Args:
        ids: with any id in the places of the picture.
        image_at: where its features go.
    """
    import torch.distributed as dist

    _pretend()
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=dist.get_world_size())
    place, rank = Path(folder), dist.get_rank()
    with torch.serialization.safe_globals([argparse.Namespace, io.BytesIO]):
        file = place / "iter_0000001" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        state = torch.load(file, weights_only=True)
    described = json.loads((place / "vlmrun.json").read_text("utf-8"))["json"]
    text, vision = described["llm/config.json"], described["tower/config.json"]
    parts = _parts(text, vision, state["args"], _depth(state["model"]))
    for prefix, module in parts.items():
        held = {name.removeprefix(prefix): value for name, value in state["model"].items() if name.startswith(prefix)}
        _fill(module, held)
    with torch.no_grad():
        found = _forward(parts, torch.tensor([ids]), torch.tensor(pixels), image_at)
    pieces = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, found.contiguous())
    return torch.cat(pieces, dim=-1).tolist()


def _depth(state: dict[str, Any]) -> int:
    names = [name for name in state if name.startswith("vision_model.decoder.layers.")]
    return len({name.split(".")[3] for name in names})


def _pretend() -> None:
    import warnings

    warnings.simplefilter("ignore")
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.Tensor.cuda = lambda self, *_, **__: self
    from megatron.core.tensor_parallel import random

    random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)


def _fill(module: Any, held: dict[str, Any]) -> None:
    state = {}
    for name, value in held.items():
        if name.endswith("_extra_state"):
            continue
        for fused, local in LAYER_NORMS:
            name = name.replace(fused, local)
        state[name] = value
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if "_extra_state" not in name]
    assert not missing, missing
    assert not unexpected, unexpected


def _config(**values: Any) -> Any:
    from megatron.core.transformer import TransformerConfig

    off = ("bias_activation_fusion", "masked_softmax_fusion", "bias_dropout_fusion", "apply_rope_fusion",
           "gradient_accumulation_fusion", "persist_layer_norm")  # fmt: skip
    return TransformerConfig(
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=torch.distributed.get_world_size(),
        pipeline_dtype=torch.float32,
        **dict.fromkeys(off, False),
        **values,
    )


def _parts(text: dict[str, Any], vision: dict[str, Any], told: Any, depth: int) -> dict[str, Any]:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.vision.clip_vit_model import CLIPViTModel
    from megatron.core.models.vision.multimodal_projector import MultimodalProjector
    from megatron.core.models.vision.vit_layer_specs import get_vit_layer_with_local_spec
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    language = _config(
        num_layers=told.num_layers,
        hidden_size=told.hidden_size,
        ffn_hidden_size=told.ffn_hidden_size,
        num_attention_heads=told.num_attention_heads,
        num_query_groups=told.num_query_groups,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=text["rms_norm_eps"],
        add_bias_linear=False,
    )
    seeing = _config(
        num_layers=depth,
        hidden_size=vision["hidden_size"],
        ffn_hidden_size=vision["intermediate_size"],
        num_attention_heads=vision["num_attention_heads"],
        activation_func=lambda x: x * torch.sigmoid(1.702 * x),
        normalization="LayerNorm",
        layernorm_epsilon=vision["layer_norm_eps"],
        add_bias_linear=True,
    )
    joining = _config(
        num_layers=1,
        hidden_size=told.hidden_size,
        ffn_hidden_size=told.hidden_size,
        num_attention_heads=told.num_attention_heads,
        activation_func=torch.nn.functional.gelu,
        add_bias_linear=True,
    )
    layer = get_vit_layer_with_local_spec()
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = WrappedTorchNorm
    layer.submodules.self_attention.params["attn_mask_type"] = AttnMaskType.no_mask  # the stock one is causal
    MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    vision["image_size"]
    return {
        "language_model.": GPTModel(
            language,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=told.padded_vocab_size,
            max_sequence_length=told.max_position_embeddings,
            position_embedding_type="rope",
            rotary_base=10000,
            share_embeddings_and_output_weights=False,
            parallel_output=True,
        ),
        "vision_model.": CLIPViTModel(
            seeing,
            layer,
            WrappedTorchNorm,
            WrappedTorchNorm,
            patch_dim=vision["patch_size"],
            img_h=vision["image_size"],
            img_w=vision["image_size"],
        ),
        "vision_projection.": MultimodalProjector(
            joining,
            MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
            "mlp",
            vision["hidden_size"],
        ),
    }


def _forward(parts: dict[str, Any], ids: Any, pixels: Any, image_at: int) -> Any:
    seen = parts["vision_model."].eval()(pixels)[:, 1:]
    rows = parts["vision_projection."].eval()(seen.transpose(0, 1))  # [T, 1, H]
    llm = parts["language_model."].eval()
    length = ids.shape[1]
    positions = torch.arange(length)[None]
    embedded = llm.embedding(input_ids=ids, position_ids=positions).clone()  # [L, 1, H]
    embedded[image_at : image_at + len(rows)] = rows
    hidden = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    return llm(ids, positions, hidden, decoder_input=embedded)
