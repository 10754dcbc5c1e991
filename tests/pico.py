"""Pico models for tests: two layers, width 32, made in-process, saved as ordinary Hugging Face folders.

Special tokens of the tokenizer: <|bos|> <|pad|> <|user|> <|assistant|> <|end|> (the last is its end of sequence).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vlmrun.config.schema import ModelConfig
from vlmrun.model.parts import Loaded, assemble
from vlmrun.model.vlm import VLM

SPECIAL_TOKENS = ("<|bos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
IMAGE_SIZE = 16
PATCH_SIZE = 8
N_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large enough that a random model's greedy choice is never a near tie
}
# Rows of whole blocks, which 4-bit layers need on a CPU.
NF4 = {"bits": 4, "type": "nf4", "double": True, "head": False}
WIDE = {"hidden_size": 64, "intermediate_size": 128}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}
TARGETS = {"clip": "vlmrun.model.towers.clip.Clip", "siglip": "vlmrun.model.towers.siglip.Siglip"}

_CORPUS = [
    "What colour is the shape? red", "Where is the circle? at the top", "How many stars are there? three",
    "a small blue square on the left", "a large green triangle", "Is red a colour or a shape? a colour",
    "USER: Describe the image. ASSISTANT: a yellow ring</s>", "The quick brown fox jumps over the lazy dog.",
]  # fmt: skip


@lru_cache(maxsize=2)
def _trained_tokenizer(bos: bool) -> str:
    """JSON of a byte-level BPE trained on a few sentences; deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
        )
    return tokenizer.to_str()


def pico_tokenizer(folder: Path, *, bos: bool = True) -> Path:
    """Writes a fast tokenizer folder; `bos`: whether encoding puts <|bos|> in front."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer(bos)),
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=512,
    )
    tokenizer.save_pretrained(folder)
    return folder


def pico_llm(folder: Path, *, seed: int = 0, bos: bool = True, **changes: Any) -> Path:
    """Writes a Llama folder with its tokenizer; `changes` to its config."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    pico_tokenizer(folder, bos=bos)
    n_tokens = len(AutoTokenizer.from_pretrained(folder))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{"vocab_size": n_tokens, **LLAMA, **changes}))
    _save(model, folder)
    return folder


def pico_tower(folder: Path, kind: str = "clip", *, seed: int = 1, **changes: Any) -> Path:
    """Writes a CLIP or SigLIP vision folder with its preprocessor; `changes` to its config."""
    import transformers

    name = {"clip": "CLIPVision", "siglip": "SiglipVision"}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{name}Config")(**{**TOWER, **changes})
        model = getattr(transformers, f"{name}Model")(config)
    _save(model, folder)
    size = config.image_size
    preprocessor: dict[str, Any] = {
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    if kind == "clip":
        preprocessor |= {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size},
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
        }
    else:
        preprocessor |= {"image_processor_type": "SiglipImageProcessor", "size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), "utf-8")
    return folder


def pico_model_config(
    folder: Path, *, tower: str = "clip", depth: int = 2, template: str = "micro", max_length: int = 128
) -> ModelConfig:
    """Writes `folder/llm` and `folder/tower` (unless there already) and describes a model made of them."""
    if not (folder / "llm").is_dir():
        pico_llm(folder / "llm")
    if not (folder / "tower").is_dir():
        pico_tower(folder / "tower", tower)
    return ModelConfig.model_validate(
        {
            "llm": {"_target_": "vlmrun.model.llm.load", "path": str(folder / "llm")},
            "tower": {"_target_": TARGETS[tower], "path": str(folder / "tower"), "layers": [-2]},
            "connector": {"_target_": "vlmrun.model.connectors.mlp.MLP", "depth": depth},
            "template": template,
            "max_length": max_length,
            "image_markers": None,
            "new_tokens": [],
            "tiles": None,
        }
    )


def pico_loaded(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    quantized: dict[str, Any] | None = None,
    **choices: Any,
) -> Loaded:
    """A pico VLM with its tokenizer, assembled from folders; `choices` go to `pico_model_config`."""
    config = pico_model_config(folder, **choices)
    return assemble(config, dtype=dtype, attention="sdpa", seed=seed, quantized=quantized)


def pico_vlm(
    *, seed: int = 0, tower: str = "clip", vocab_size: int = 320, depth: int = 2, dtype: torch.dtype = torch.float32
) -> VLM:
    """A pico VLM without any file, in eval mode; nothing of it frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from vlmrun.model.connectors.mlp import MLP
    from vlmrun.model.towers.clip import Clip
    from vlmrun.model.towers.siglip import Siglip

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **LLAMA)).to(dtype)
        vision = {"clip": Clip, "siglip": Siglip}[tower](config=dict(TOWER), dtype=dtype, attention="sdpa")
        return VLM(llm, vision, MLP(vision.hidden_dim, LLAMA["hidden_size"], depth).to(dtype)).eval()


def _save(model: Any, folder: Path) -> None:
    from vlmrun.model.pretrained import quietly

    with quietly():
        model.save_pretrained(folder)
