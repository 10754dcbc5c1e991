"""Loading LLMs and tokenizers, and assembling the three parts."""

import shutil
import subprocess
import sys

import pytest
import torch

from tests.pico import LLAMA, pico_llm, pico_model_config, pico_tokenizer
from vlmrun.config.schema import ModelConfig
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.model.llm import load
from vlmrun.model.parts import assemble, seeded

HOW = {"dtype": torch.float32, "attention": "sdpa"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pico_llm(tmp_path_factory.mktemp("pico") / "llm")


def test_a_folder_gives_model_and_tokenizer_in_the_asked_type(folder):
    llm = load(str(folder), dtype=torch.bfloat16, attention="eager")
    assert next(llm.model.parameters()).dtype == torch.bfloat16
    assert llm.model.config._attn_implementation == "eager"
    assert not llm.model.training
    assert llm.tokenizer.is_fast
    assert llm.source == llm.tokenizer_source == folder


def test_a_config_gives_random_weights_with_the_tokenizers_vocabulary(folder):
    llm = load(config={"model_type": "llama", **LLAMA}, tokenizer=str(folder), **HOW)
    assert llm.model.config.vocab_size == len(llm.tokenizer)
    assert llm.source is None


def test_wrong_requests_are_config_errors(folder):
    with pytest.raises(ConfigError, match="either `path` or `config`"):
        load(**HOW)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        load(config={"model_type": "llama"}, **HOW)
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        load(config={"model_type": "lama"}, tokenizer=str(folder), **HOW)


def test_a_folder_that_is_not_whole_is_a_checkpoint_error(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        load(str(tmp_path / "none"), **HOW)
    for missing, message in (("tokenizer.json", "tokenizer"), ("model.safetensors", "model cannot be loaded")):
        copy = shutil.copytree(folder, tmp_path / missing)
        (copy / missing).unlink()
        with pytest.raises(CheckpointError, match=message):
            load(str(copy), **HOW)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(folder):
    with pytest.raises(CheckpointError, match="embeds only 100"):
        load(config={"model_type": "llama", "vocab_size": 100, **LLAMA}, tokenizer=str(folder), **HOW)


def test_padding_is_named_and_never_guessed(tmp_path):
    from transformers import AutoTokenizer

    pico_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)

    def loaded(**tokens):
        return load(config={"model_type": "llama", **LLAMA}, tokenizer=str(tmp_path), tokens=tokens, **HOW).tokenizer

    with pytest.raises(CheckpointError, match=r"no padding token(.|\n)*tokens.pad='<\|end\|>'"):
        loaded()
    assert loaded(pad="<|end|>").pad_token == "<|end|>"
    roles = loaded(pad="<|user|>", eos="<|assistant|>", unk="<|pad|>", bos="<|end|>")
    assert (roles.pad_token_id, roles.eos_token_id, roles.unk_token_id, roles.bos_token_id) == (2, 3, 1, 4)
    with pytest.raises(CheckpointError, match=r"tokens.pad is '<unk>', which the tokenizer does not have"):
        loaded(pad="<unk>")
    with pytest.raises(CheckpointError, match="no role 'padding'"):
        loaded(padding="<|end|>")


def _random_config(folder, depth=2):
    config = pico_model_config(folder, depth=depth).model_dump(by_alias=True)
    config["llm"] = {"_target_": "vlmrun.model.llm.load", "config": {"model_type": "llama", **LLAMA}}
    config["llm"]["tokenizer"] = str(folder / "llm")
    return ModelConfig.model_validate(config)


def test_what_is_random_in_a_part_depends_on_its_seed_alone(tmp_path):
    """The same connector whether the LLM before it drew random numbers or not, and whatever was drawn before."""
    from_folder = pico_model_config(tmp_path)
    torch.manual_seed(1)
    first = assemble(from_folder, seed=5, **HOW).vlm
    torch.manual_seed(2)
    second = assemble(_random_config(tmp_path), seed=5, **HOW).vlm
    third = assemble(_random_config(tmp_path), seed=6, **HOW).vlm
    for mine, same, other in zip(*(v.connector.parameters() for v in (first, second, third)), strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(mine, other)
    again = assemble(_random_config(tmp_path), seed=5, **HOW).vlm
    assert all(torch.equal(a, b) for a, b in zip(second.llm.parameters(), again.llm.parameters(), strict=True))


def test_seeding_leaves_the_outer_generator_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    with seeded(0, "llm"):
        inner = torch.rand(3)
    with seeded(0, "tower"):
        assert not torch.equal(torch.rand(3), inner)
    assert torch.equal(torch.rand(3), expected)


def test_dimensions_come_from_the_parts(tmp_path):
    loaded = assemble(pico_model_config(tmp_path, depth=1), seed=0, **HOW)
    assert loaded.vlm.connector.layers[0].weight.shape == (32, 16)
    assert loaded.sources["llm"] == tmp_path / "llm"
    assert loaded.sources["tower"] == tmp_path / "tower"
    assert loaded.sources["connector"] is loaded.sources["adapter"] is None
    assert not loaded.vlm.training


def test_a_wrong_argument_is_named(tmp_path):
    config = pico_model_config(tmp_path).model_dump(by_alias=True)
    config["connector"]["dept"] = config["connector"].pop("depth")
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        assemble(ModelConfig.model_validate(config), seed=0, **HOW)


def test_building_a_model_imports_neither_peft_nor_the_trainer(tmp_path):
    """Workers start often: PEFT alone takes five seconds to import."""
    script = (
        "import sys, torch; from pathlib import Path; from tests.pico import pico_loaded;"
        f"pico_loaded(Path({str(tmp_path)!r}));"
        "print([m for m in ('peft', 'transformers.trainer', 'bitsandbytes') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
