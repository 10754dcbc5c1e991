"""An export proves itself in plain transformers, or is thrown away."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.parity.golden import ASSETS, need
from tests.pico import pico_llm, pico_loaded, pico_model_config
from tests.unit.formats.conftest import differences, saved, to
from vlmrun.config.schema import ModelConfig
from vlmrun.data import templates
from vlmrun.data.sample import Turn
from vlmrun.errors import CheckpointError
from vlmrun.formats import hf_llava, llava_text, verify
from vlmrun.formats.load import describe, load
from vlmrun.model.parts import assemble
from vlmrun.serve.dialogue import Dialogue

LLM = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("tower", "aspect", "dtype"),
    [("clip", "pad", torch.float32), ("siglip", "square", torch.float32), ("siglip", "pad", torch.bfloat16)],
)
def test_plain_transformers_sees_reads_and_answers_alike(tmp_path, tower, aspect, dtype):
    loaded = pico_loaded(tmp_path / "pico", tower=tower, dtype=dtype)
    summary = to(saved(tmp_path / "ours", loaded, aspect=aspect), tmp_path / "hf", "hf_llava", prove=True)
    proof = summary["proof"]
    assert proof["logits_apart"] <= 1e-6 * 4 if dtype == torch.float32 else proof["logits_apart"] < 0.1
    assert proof["pixels"] == 3 * 16 * 16
    assert proof["prompt_ids"] > 4


@pytest.mark.parametrize(
    ("tokenizer", "template", "pad", "rows"),
    [
        ("sp_small", "vicuna_v1", "<unk>", 1500),  # a space before a text, not behind a special token
        ("llama3_small", "llama_3", "<|eot_id|>", 128256),  # ids with gaps; the template writes its own beginning
    ],
)
def test_every_kind_of_tokenizer_gives_the_same_ids_there(tmp_path, tokenizer, template, pad, rows):
    values = pico_model_config(tmp_path / "pico").model_dump(by_alias=True)
    folder = need(ASSETS / "tokenizers" / tokenizer)
    llm = {"config": LLM | {"vocab_size": rows}, "tokenizer": str(folder), "tokens": {"pad": pad} if pad else None}
    values |= {"llm": {"_target_": "vlmrun.model.llm.load", **llm}, "template": template}
    loaded = assemble(ModelConfig.model_validate(values), dtype=torch.float32, attention="sdpa", seed=0)
    ours = saved(tmp_path / "ours", loaded, template=template)
    assert to(ours, tmp_path / "hf", "hf_llava", prove=True)["proof"]["logits_apart"] < 1e-5
    to(tmp_path / "hf", tmp_path / "back", "native")
    assert differences(ours, tmp_path / "back") == []
    again = load(tmp_path / "back", dtype=torch.float32, attention="sdpa").tokenizer
    text = "USER: What is it? </s> <|eot_id|> ASSISTANT: it"
    assert again(text)["input_ids"] == load(ours, dtype=torch.float32, attention="sdpa").tokenizer(text)["input_ids"]


@pytest.mark.parametrize(("spare", "grown"), [(0, 1), (1, 0), (5, 0)])
def test_the_image_token_takes_a_spare_row_or_gets_a_new_one(tmp_path, spare, grown):
    pico_llm(tmp_path / "pico/llm", vocab_size=320 + spare)
    loaded = pico_loaded(tmp_path / "pico")
    n_tokens = len(loaded.tokenizer)
    ours = saved(tmp_path / "ours", loaded)
    to(ours, tmp_path / "hf", "hf_llava", prove=True)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["image_token_index"] == n_tokens == 320
    assert config["text_config"]["vocab_size"] == 320 + spare + grown
    to(tmp_path / "hf", tmp_path / "back", "native")
    assert json.loads((tmp_path / "back/llm/config.json").read_text())["vocab_size"] == 320 + spare
    assert "<image>" not in (tmp_path / "back/llm/tokenizer.json").read_text()


def test_an_export_that_answers_otherwise_is_thrown_away(tmp_path, model, monkeypatch):
    honest = hf_llava.config_values
    for changes, said in (
        ({"vision_feature_layer": -1}, "logits are"),
        ({"image_token_index": 5}, "it cannot be used"),
        ({"projector_hidden_act": "relu"}, "logits are"),
    ):
        monkeypatch.setattr(hf_llava, "config_values", lambda *given, changes=changes: honest(*given) | changes)
        with pytest.raises(CheckpointError, match=said):
            to(model, tmp_path / "hf", "hf_llava", prove=True)
        assert list(tmp_path.iterdir()) == [], "neither the folder nor a temporary one"
    monkeypatch.setattr(hf_llava, "config_values", honest)
    monkeypatch.setattr(llava_text, "chat_template", lambda *_: "<|user|><image>Who?<|end|>")
    with pytest.raises(CheckpointError, match="token ids of the prompt differ"):
        to(model, tmp_path / "hf", "hf_llava", prove=True)
    to(model, tmp_path / "hf", "hf_llava", prove=False)
    assert (tmp_path / "hf/config.json").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_a_choice_that_rounding_decides_may_differ(dtype):
    """The logits of ids 1 and 2 are as close as given at place 1; elsewhere the same id is far ahead."""
    limit = verify._ROUNDING[dtype] * 4.0
    choices = torch.full((3, 5), -4.0)
    choices[0, 3] = choices[1, 1] = choices[2, 3] = 4.0
    here, there = torch.tensor([3, 2, 0]), torch.tensor([3, 1, 3])
    choices[1, 2] = 4.0 - 1.9 * limit
    assert verify.answered_alike(here, there, choices, dtype) == 1
    assert verify.answered_alike(there, there, choices, dtype) == 3
    choices[1, 2] = 4.0 - 2.1 * limit
    for ours in (here, there[:2]):
        with pytest.raises(CheckpointError, match="generated ids differ"):
            verify.answered_alike(ours, there, choices, dtype)


@pytest.mark.parametrize("name", sorted(templates.TEMPLATES))
@pytest.mark.parametrize("behind", ["", " "])
def test_the_chat_template_writes_what_the_template_does(name, behind):
    from jinja2 import Environment

    template = templates.get(name).with_markers("<im_start>", "<im_end>")
    render = Environment().from_string(llava_text.chat_template(template, behind)).render
    turns = [Turn("user", "<image>\n<image>\nWho?"), Turn("assistant", "Nobody.\n"), Turn("user", ' And "now"? ')]
    content = [{"type": "image"}, {"type": "text", "text": "  Who?"}, {"type": "image"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Nobody.\n"},
        {"role": "user", "content": [{"type": "text", "text": ' And "now"? '}]},
    ]
    space = behind if template.keep_question else ""
    for n in (1, 3):
        expected = template.prompt(turns[:n]).replace("<image>", f"<image>{space}")
        assert render(messages=messages[:n], add_generation_prompt=True) == expected
    whole = "".join(piece.text for piece in template.render(turns[:2])).replace("<image>", f"<image>{space}")
    assert render(messages=messages[:2], add_generation_prompt=False) == whole


def test_a_foreign_folder_is_talked_with_directly(tmp_path, model):
    for name in ("hf_llava", "llava", "megatron"):
        to(model, tmp_path / name, name)
    ours = _answer(model)
    assert ours
    for name in ("hf_llava", "llava", "megatron"):
        assert _answer(tmp_path / name) == ours, name
    with pytest.raises(CheckpointError, match="there is no model here"):
        describe(tmp_path)


def _answer(folder: Path) -> str:
    from PIL import Image

    loaded = load(folder, dtype=torch.float32, attention="sdpa")
    dialogue = Dialogue(loaded, aspect=describe(folder)["image_aspect"], max_new_tokens=12)
    return dialogue.ask("What colour is the shape?", [Image.new("RGB", (30, 20), (200, 10, 60))])


def test_a_published_folder_has_its_values_read_from_either_processor_file(tmp_path, model):
    to(model, tmp_path / "hf", "hf_llava")
    shutil.copytree(tmp_path / "hf", tmp_path / "new")
    (tmp_path / "new/vlmrun.json").unlink()
    values = json.loads((tmp_path / "new/preprocessor_config.json").read_text())
    (tmp_path / "new/preprocessor_config.json").unlink()
    (tmp_path / "new/processor_config.json").write_text(json.dumps({"image_processor": values}))
    config = json.loads((tmp_path / "new/config.json").read_text())
    for part, name in (("text_config", "hidden_act"), ("vision_config", "num_channels")):
        del config[part][name]  # as llava-hf leaves out whatever is the default
    (tmp_path / "new/config.json").write_text(json.dumps(config))
    to(tmp_path / "new", tmp_path / "back", "native")
    assert json.loads((tmp_path / "back/tower/preprocessor_config.json").read_text())["crop_size"]
    assert json.loads((tmp_path / "back/llm/config.json").read_text())["hidden_act"] == "silu"
    assert json.loads((tmp_path / "back/tower/config.json").read_text())["num_channels"] == 3
