"""Model folders from the packages that carry their weights: a gguf LLM, a PyTorch EfficientNet, an ONNX DINOv2.

Each function writes a folder that vlmrun loads like any other: `config.json`, safetensors, and what goes with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from examples.emoji.efficientnet import EfficientNetLite0
from vlmrun.data.images.loading import load_image
from vlmrun.data.images.transform import ImageTransform

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def smollm2(gguf: Path, folder: Path) -> None:
    """SmolLM2-135M-Instruct, dequantised once to bf16 safetensors: loading gguf takes ten times as long each time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):  # else it refuses to be saved
        if name in model.__dict__:
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


def efficientnet_lite0(checkpoint: Path, folder: Path, image_size: int) -> None:
    """EfficientNet-lite0 without its classifier; features pass as they are until `standardise` has seen pictures."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if name.startswith(("_conv_stem", "_bn0", "_blocks"))}
    kept |= {"feature_mean": torch.zeros(320), "feature_std": torch.ones(320)}
    config = {
        "model_type": "efficientnet_lite0",
        "hidden_size": 320,
        "image_size": image_size,
        "patch_size": 32,
        "num_hidden_layers": 16,
    }
    _write(folder, config, {name: tensor.contiguous() for name, tensor in kept.items()})


def standardise(folder: Path, pictures: Sequence[Path]) -> None:
    """Writes mean and deviation of every channel over these pictures into an EfficientNet's folder."""
    tower = EfficientNetLite0(str(folder), dtype=torch.float32, attention="sdpa")
    transform = ImageTransform(tower.preprocessor)
    found = []
    with torch.no_grad():
        for path in pictures:
            pixels = transform(load_image(path), "square")
            found.append(tower(torch.from_numpy(pixels)[None])[0].flatten(0, 1))
    features = torch.cat(found)
    state = load_file(folder / "model.safetensors")
    state |= {"feature_mean": features.mean(0), "feature_std": features.std(0) + 1e-4}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def dinov2_small(onnx_file: Path, folder: Path) -> None:
    """A DINOv2 ViT-S/14 out of the backbone of a saliency model; its last layers were tuned for that task."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(onnx_file).graph
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    state = {name.removeprefix("backbone."): tensor for name, tensor in arrays.items() if name.startswith("backbone.")}
    _add_matrices(state, arrays)
    # The class position stands alone, the patch positions (37 x 37, for 518 px) apart from it.
    unnamed = [tensor for name, tensor in arrays.items() if name.startswith("onnx::") and tensor.dim() == 3]
    class_place, patch_places = sorted(unnamed, key=lambda tensor: tensor.shape[1])
    state["embeddings.position_embeddings"] = torch.cat([class_place, patch_places], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, state["embeddings.cls_token"].shape[-1])
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
    }
    _write(folder, config, {name: tensor.contiguous() for name, tensor in state.items()})
    preprocessor = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "size": {"shortest_edge": 518}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


_MATRICES = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_MATRICES += ("attention.output.dense", "mlp.fc1", "mlp.fc2")


def _add_matrices(state: dict[str, torch.Tensor], arrays: dict[str, torch.Tensor]) -> None:
    """The exporter kept the matrices in order, six a layer, transposed and without their names."""
    matrices = [tensor for name, tensor in arrays.items() if name.startswith("onnx::MatMul")]
    for number, tensor in enumerate(matrices):
        layer, place = divmod(number, len(_MATRICES))
        name = f"encoder.layer.{layer}.{_MATRICES[place]}"
        assert state[f"{name}.bias"].shape[0] == tensor.shape[1], f"{name} has another shape than its bias"
        state[f"{name}.weight"] = tensor.T


def _write(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
