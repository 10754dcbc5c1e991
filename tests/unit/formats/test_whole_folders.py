"""The language model of a whole VLM's folder, on its own."""

import pytest
import torch

from tests.pico import LLAMA, TOWER, pico_tokenizer
from tests.unit.formats.conftest import to
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.model.llm import load
from vlmrun.model.pretrained import quietly

TEXT = {"vocab_size": 328, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 1, **LLAMA}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "num_heads": 2,
    "depth": 1,
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "patch_size": 8,
}
WHOLE = {
    "gemma3": {"text_config": TEXT, "vision_config": TOWER, "mm_tokens_per_image": 4, "image_token_index": 320},
    "mistral3": {
        "text_config": TEXT | {"model_type": "ministral3"},
        "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8},
    },
    "qwen3_5": {"text_config": TEXT | LINEAR, "vision_config": VISION},
    "qwen3_vl": {"text_config": TEXT, "vision_config": VISION | {"deepstack_visual_indexes": [0]}},
}


def saved(folder, family):
    from transformers import AutoConfig, AutoModelForImageTextToText

    pico_tokenizer(folder)
    with quietly():
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **WHOLE[family])).eval()
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen3_5"])
def test_the_language_model_is_taken_out_and_computes_the_same(family, tmp_path):
    whole = saved(tmp_path / "whole", family)
    with pytest.raises(ConfigError, match=r"(?s)is a whole VLM.*vlmrun convert FOLDER OUT --to hf"):
        load(str(tmp_path / "whole"), dtype=torch.float32, attention="sdpa")
    to(tmp_path / "whole", tmp_path / "llm", "hf")
    llm = load(str(tmp_path / "llm"), dtype=torch.float32, attention="sdpa").model
    embeds = torch.randn(2, 7, 32)
    with torch.no_grad():
        found = llm(inputs_embeds=embeds, use_cache=False).logits
        there = whole(inputs_embeds=embeds, use_cache=False).logits
    torch.testing.assert_close(found, there, rtol=1e-5, atol=1e-5)


def test_a_text_half_that_is_no_family_alone_is_refused(tmp_path):
    saved(tmp_path / "whole", "qwen3_vl")
    with pytest.raises(CheckpointError):
        to(tmp_path / "whole", tmp_path / "llm", "hf")
