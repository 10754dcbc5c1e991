"""Adapters as PEFT writes them, of every kind that is handled, against PEFT's own merge; several adapters at once."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.models import finish, merging
from vlmrun.errors import CheckpointError
from vlmrun.formats.load import load
from vlmrun.merging.compatible import same_content
from vlmrun.merging.merge import merge
from vlmrun.weights.adapter import CONFIG, WEIGHTS
from vlmrun.weights.reader import Reader

HOW = {"dtype": torch.float32, "attention": "sdpa"}
KINDS = {
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.1.mlp.up_proj": 2},
        "alpha_pattern": {"q_proj": 32, r"layers\.0\.mlp\.up_proj": 3},
    },
    "rank-stabilised": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_dora": True},
    "saved modules": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "o_proj"]},
    "head": {"target_modules": ["lm_head", "k_proj"]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
}


def _peft(source, folder, seed, **values):
    """A stage like `source`, its adapter one that PEFT made and wrote; and what PEFT merges it to."""
    from peft import LoraConfig, get_peft_model

    llm = load(source, **HOW).vlm.llm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(llm, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **values))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        shutil.copytree(source, folder)
        model.save_pretrained(folder / "weights/adapter")
        description = json.loads((source / "weights/model.json").read_text())
        (folder / "weights/model.json").write_text(json.dumps(description | {"adapter": "adapter"}))
        return finish(folder), dict(model.merge_and_unload().named_parameters())


@pytest.fixture
def untied(tmp_path):
    """A model whose head is its own."""
    from tests.pico import pico_llm, pico_loaded
    from tests.unit.models import save

    pico_llm(tmp_path / "pico/llm", tie_word_embeddings=False, attention_bias=True)
    return save(tmp_path / "untied", pico_loaded(tmp_path / "pico"), "llm")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_merged_as_peft_merges_it(tmp_path, untied, kind):
    stage, expected = _peft(untied, tmp_path / "stage", 3, **KINDS[kind])
    summary = merge(merging(), [stage], tmp_path / "merged/weights")
    merged, base = Reader(tmp_path / "merged/weights/llm"), Reader(untied / "weights/llm")
    assert set(merged.names()) == set(expected)
    changed = [name for name in merged.names() if not torch.equal(merged.get(name), base.get(name))]
    assert summary["merged"] >= len(changed) > 0
    for name in merged.names():
        assert torch.allclose(merged.get(name), expected[name], atol=1e-5), name
    loaded = dict(load(stage, merge_adapter=True, **HOW).vlm.llm.named_parameters())
    assert all(torch.equal(loaded[name], merged.get(name)) for name in merged.names())
    if kind not in ("rank-stabilised", "biases"):
        talking = load(stage, **HOW).vlm.llm
        assert not hasattr(talking, "peft_config"), "kinds that our trainer does not make are folded in when loaded"


def test_an_adapter_on_a_shared_embedding_is_refused(tmp_path, make):
    source = make("base2", 1)
    stage, _ = _peft(source, tmp_path / "stage", 3, target_modules=["embed_tokens"])
    if "lm_head.weight" in Reader(source / "weights/llm").names():
        (stage / "weights/llm/config.json").write_text(
            json.dumps(json.loads((stage / "weights/llm/config.json").read_text()) | {"tie_word_embeddings": True})
        )
        file = stage / "weights/llm/model.safetensors"
        tensors = {n: t for n, t in load_file(file).items() if n != "lm_head.weight"}
        save_file(tensors, file)
    with pytest.raises(CheckpointError, match="is the output head too"):
        merge(merging(), [finish(stage)], tmp_path / "merged/weights")
    assert not (tmp_path / "merged").exists()


def _part(folder, part):
    reader = Reader(folder / "weights" / part)
    return {name: reader.get(name) for name in reader.names()}


def test_several_adapters_are_a_weighted_sum_of_their_changes(tmp_path, make):
    stages = [make("one", 1, "connector", adapter=True), make("two", 2, "connector", adapter=True, r=2, alpha=3.0)]
    alone = []
    for number, stage in enumerate(stages):
        merge(merging(), [stage], tmp_path / f"alone{number}/weights")
        alone.append(_part(tmp_path / f"alone{number}", "llm"))
    merge(merging(2, weights=[0.25, 0.75]), stages, tmp_path / "both/weights")
    for name, value in _part(tmp_path / "both", "llm").items():
        assert torch.allclose(value, 0.25 * alone[0][name] + 0.75 * alone[1][name], atol=1e-6), name
    connectors = [_part(stage, "connector") for stage in stages]
    for name, value in _part(tmp_path / "both", "connector").items():
        assert torch.allclose(value, 0.25 * connectors[0][name] + 0.75 * connectors[1][name], atol=1e-6), name
    load(tmp_path / "both", **HOW)


def test_changes_may_be_added_where_nothing_else_was_trained(tmp_path, make):
    stages = [make("one", 1, adapter=True), make("two", 2, adapter=True)]
    merge(merging(2), stages, tmp_path / "both/weights")
    alone = []
    for number, stage in enumerate(stages):
        merge(merging(), [stage], tmp_path / f"alone{number}/weights")
        alone.append(_part(tmp_path / f"alone{number}", "llm"))
    base = _part(stages[0], "llm")
    for name, value in _part(tmp_path / "both", "llm").items():
        assert torch.allclose(value, alone[0][name] + alone[1][name] - base[name], atol=1e-6), name
    assert same_content(Reader(tmp_path / "both/weights/connector"), Reader(stages[0] / "weights/connector"))


def test_connectors_that_differ_and_other_bases_are_refused(tmp_path, make):
    first = make("one", 1, "connector", adapter=True)
    second, other = make("two", 2, "connector", adapter=True), make("three", 3, "llm", adapter=True)
    with pytest.raises(CheckpointError, match="connector was trained beside the adapter"):
        merge(merging(2), [first, second], tmp_path / "merged/weights")
    with pytest.raises(CheckpointError, match="trained on another LLM"):
        merge(merging(2, weights=[0.5, 0.5]), [first, other], tmp_path / "merged/weights")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("file", ["llm/model.safetensors", f"adapter/{WEIGHTS}", f"adapter/{CONFIG}"])
def test_a_flipped_bit_is_found_and_leaves_nothing(tmp_path, make, file):
    stage = make("one", 1, adapter=True)
    harmed = finish(shutil.copytree(stage, tmp_path / "harmed"))
    path = harmed / "weights" / file
    content = bytearray(path.read_bytes())
    place = content.index(b'"r": 4') + 5 if file.endswith(CONFIG) else len(content) - 3
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="content changed"):
        merge(merging(), [harmed], tmp_path / "merged/weights")
    assert not (tmp_path / "merged/weights").exists()
