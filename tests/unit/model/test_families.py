"""Causal LMs of every family: from a config and from a folder, through the same splice, gradients and generation."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from tests.pico import pico_tokenizer, pico_vlm
from vlmrun.arch.families import find
from vlmrun.arch.minicpm import granite_values
from vlmrun.config.compose import conf_dir
from vlmrun.errors import CheckpointError
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model.connectors.mlp import MLP
from vlmrun.model.llm import load
from vlmrun.model.vlm import VLM

OPTIONS = sorted(path.stem for path in (Path(conf_dir()) / "model/llm").glob("pico*.yaml"))


def _option(name):
    return yaml.safe_load((Path(conf_dir()) / f"model/llm/{name}.yaml").read_text())["config"]


def _how(config):
    return {"dtype": torch.float32, "attention": find(config["model_type"]).attention_like("sdpa")}


def _saved(folder, name):
    """A folder of this family, with random weights and the config.json that its own code would write."""
    config = _option(name)
    torch.manual_seed(0)
    model = load(None, dict(config), "builtin:micro-llm", **_how(config)).model
    pico_tokenizer(folder)
    model.save_pretrained(folder)
    if find(config["model_type"]).held_as is not None:
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder, config


@pytest.mark.parametrize("name", OPTIONS)
def test_a_family_trains_through_the_splice_generates_and_comes_back(name, tmp_path):
    folder, config = _saved(tmp_path / "llm", name)
    loaded = load(str(folder), **_how(config))
    parts = pico_vlm()
    vlm = VLM(loaded.model, parts.tower, MLP(parts.tower.hidden_dim, 32))
    n = parts.tower(torch.zeros(1, 3, parts.tower.image_size, parts.tower.image_size))[0].shape[1]
    ids = torch.tensor([[5] + [IMAGE_TOKEN] * n + [6, 7], [5] + [IMAGE_TOKEN] * n + [8, 9]])
    pixels = torch.randn(2, 3, parts.tower.image_size, parts.tower.image_size)
    labels = ids.masked_fill(ids == IMAGE_TOKEN, -100)
    out = vlm(ids, torch.ones_like(ids), pixels, labels)
    assert out.logits.shape == (2, n + 3, 512)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vlm.connector.parameters())
    assert all(p.grad is not None for p in vlm.llm.get_input_embeddings().parameters())
    vlm.eval()
    made = vlm.generate(ids, torch.ones_like(ids), pixels, max_new_tokens=3, eos_ids=[2])
    logits = vlm(ids, torch.ones_like(ids), pixels).logits
    assert made[:, 0].tolist() == logits[:, -1].argmax(-1).tolist()
    loaded.model.save_pretrained(tmp_path / "again")
    pico_tokenizer(tmp_path / "again")
    again = load(str(tmp_path / "again"), **_how(config)).model
    for (name, value), (other, same) in zip(loaded.model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(value, same)


@pytest.mark.parametrize("name", OPTIONS)
def test_check_knows_the_linear_layers_of_a_family(name):
    config = _option(name)
    model = load(None, dict(config), "builtin:micro-llm", **_how(config)).model
    head = model.get_output_embeddings()
    linear = {
        n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    }
    assert linear == set(find(config["model_type"]).layers)


def _by_the_formula(config, weights, embeds):
    """MiniCPM-2B as published: scaled embeddings, scaled residual branches, scaled input of the head."""
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    size, n, depth = dim // heads, embeds.shape[1], config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    angles = torch.outer(torch.arange(n).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size)).repeat(1, 2)

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weights[name]

    def turn(x):
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    hidden = embeds * config["scale_emb"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        x = norm(hidden, at + "input_layernorm.weight")
        q, k, v = (
            (x @ weights[f"{at}self_attn.{p}_proj.weight"].T).view(1, n, heads, size).transpose(1, 2) for p in "qkv"
        )
        scores = turn(q) @ turn(k).transpose(-1, -2) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1)
        mixed = (scores @ v).transpose(1, 2).reshape(1, n, dim) @ weights[at + "self_attn.o_proj.weight"].T
        hidden = hidden + mixed * depth
        x = norm(hidden, at + "post_attention_layernorm.weight")
        gate, up, down = (weights[f"{at}mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
        hidden = hidden + (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T * depth
    scaled = norm(hidden, "model.norm.weight") / (dim / config["dim_model_base"])
    return scaled @ weights["model.embed_tokens.weight"].T


def test_minicpm_is_computed_by_its_published_formula(tmp_path):
    folder, config = _saved(tmp_path, "pico_minicpm")
    model = load(str(folder), **_how(config)).model
    embeds = torch.randn(1, 7, config["hidden_size"])
    with torch.no_grad():
        found = model(inputs_embeds=embeds).logits
        expected = _by_the_formula(config, dict(model.named_parameters()), embeds)
    assert torch.allclose(found, expected, atol=2e-5)  # fp32, other order of sums


def test_a_minicpm_that_is_another_model_is_refused():
    with pytest.raises(CheckpointError, match="scale_emb"):
        granite_values({"model_type": "minicpm", "hidden_size": 8, "num_hidden_layers": 1})
    with pytest.raises(CheckpointError, match="experts"):
        granite_values(_option("pico_minicpm") | {"num_experts": 8})
