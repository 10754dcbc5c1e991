"""A pico MiniCPM-V: the pico Llama with the tokens of pictures, a tower for pictures of any shape, a resampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.pico import pico_llm
from vlmrun.config.schema import ModelConfig

MARKS = [
    *("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "<unk>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "vision_use_head": False,
}
SLICES = {"max_slices": 4, "resolution": 32, "marks": "nested", "image_ids": "never"}
SIZES = [(32, 32), (64, 40), (30, 90), (20, 20)]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}


def llm(folder: Path, **changes: Any) -> Path:
    """A pico Llama whose tokenizer has the marks."""
    from transformers import AutoTokenizer

    pico_llm(folder, vocab_size=352, **changes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(MARKS, special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def model(folder: Path, *, wide: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    """The description; `wide` changes the LLM's config, `changes` those of tower and tiles by their keys."""
    if not (folder / "llm").is_dir():
        llm(folder / "llm", **(wide or {}))
    tower = {key: changes.pop(key) for key in ("positions", "sees_padding") if key in changes}
    return ModelConfig.model_validate(
        {
            "llm": {"_target_": "vlmrun.model.llm.load", "path": str(folder / "llm")},
            "tower": {
                "_target_": "vlmrun.model.towers.siglip_navit.SiglipNavit",
                "config": TOWER,
                "image_size": 32,
                **tower,
            },
            "connector": {"_target_": "vlmrun.model.connectors.resampler.Resampler", "queries": 4, "heads": 2},
            "template": "minicpm_v25",
            "max_length": 256,
            "image_markers": None,
            "new_tokens": [],
            "tiles": SLICES | changes,
        }
    )


def records(folder: Path, n: int = 16, **more: Any) -> Path:
    """Records with one picture, two, or none, of several shapes."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(n):
        name, colour = list(COLOURS.items())[index % len(COLOURS)]
        Image.new("RGB", SIZES[index % len(SIZES)], colour).save(folder / "images" / f"{index}.png")
        question: dict[str, Any] = {"image": f"{index}.png"}
        text = "<image>\nWhich colour?" if index % 2 else "Which colour?"
        if index % 4 == 2 and index:
            question = {"image": {"<image_00>": f"{index}.png", "<image_01>": f"{index - 1}.png"}}
            text = "Compare <image_00> with <image_01>"
        elif index % 8 == 7:
            question, text = {}, "Which colour is the sky?"
        talk = [("user", text), ("assistant", name), ("user", "Sure?"), ("assistant", "Yes " * (1 + index % 3))]
        messages = [{"role": role, "content": content} for role, content in talk]
        found.append({"id": f"r{index}"} | question | {"conversations": messages})
    (folder / "data.json").write_text(json.dumps(found), "utf-8")
    return folder
