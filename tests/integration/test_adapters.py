"""Kinds of adapters: each trains, merges, loads in plain peft, is trained further, and is the same in every engine."""

import pytest
import torch

from tests.integration import ranks as forked
from tests.integration.jobs import compare, execute, make_job, rows, run, tensors
from tests.integration.test_held_out import HELD_OUT, _loss_of, finish, job_with, scores
from vlmrun.config.schema import MergeStage

pytestmark = pytest.mark.ranks

LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear", "bias": "none", "modules_to_save": []}
TUNE = {"llm": "lora", "tower": "freeze", "connector": "full"}
PATTERNS = {"rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6}, "alpha_pattern": {"v_proj": 3.0}}
KINDS = {
    "rslora": {"lora": LORA | {"rslora": True}},
    "dora": {"lora": LORA | {"dora": True}},
    "patterns": {"lora": LORA | PATTERNS},
    "last block": {"lora": LORA, "tune": TUNE | {"llm_last": 1}},
    "all at once": {
        "lora": LORA | PATTERNS | {"dora": True, "rslora": True, "modules_to_save": ["embed_tokens"]},
        "tune": TUNE | {"llm_last": 1},
    },
}
KINDS["all at once"]["lora"]["rank_pattern"] = {"layers.1.self_attn.q_proj": 2}


def _answers(folder, merged):
    """How far logits of text through PEFT, as it was trained, are from those without the adapter; and from those
    merged here, merged by `merge`, and in plain peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from vlmrun.formats.load import load
    from vlmrun.merging.merge import merge

    stage = MergeStage(
        kind="merge", init_from="x", adapters=[], weights=None, base="trained", arithmetic="fp32", dtype="keep"
    )
    merge(stage, [folder], merged)
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.no_grad():
        found = [
            load(place, dtype=torch.float32, attention="sdpa", **how).vlm.eval().llm(input_ids=ids).logits
            for place, how in ((folder, {"keep_adapter": True}), (folder, {"merge_adapter": True}), (merged, {}))
        ]
        bare = AutoModelForCausalLM.from_pretrained(folder / "weights" / "llm", dtype=torch.float32)
        without = bare(input_ids=ids).logits
        found.append(PeftModel.from_pretrained(bare, folder / "weights" / "adapter").eval()(input_ids=ids).logits)
    trained, *others = found
    return float((trained - without).abs().max()), [float((trained - other).abs().max()) for other in others]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_is_what_is_merged_and_what_peft_loads(tmp_path, kind):
    job = run(tmp_path, "trained", engine="plain", lr=2e-2, **{"tune": TUNE} | KINDS[kind])
    moved, differences = forked.run(_answers, 1, job.path, tmp_path / "merged", group=False)[0]
    assert moved > 0.05, "something was trained"
    assert differences == pytest.approx([0.0] * 3, abs=2e-4)


@pytest.mark.parametrize("engine", [{"zero": 3}, {"engine": "fsdp", "zero": 3}, {"zero": 2}], ids=str)
def test_dora_and_adapters_of_the_tower_train_the_same_on_two_ranks(tmp_path, engine):
    asked = {"tune": TUNE | {"tower": "lora", "tower_last": 1}, "lora": LORA | {"dora": True, "rslora": True}}
    alone = run(tmp_path, "alone", engine="plain", max_steps=4, **asked)
    shared = run(tmp_path, "shared", 2, micro_batch=1, max_steps=4, **asked | engine)
    compare(alone, shared, norm_rtol=1e-3)
    ours, theirs = tensors(alone), tensors(shared)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=2e-3), name


def test_an_adapter_is_trained_further(tmp_path):
    lora = LORA | {"dora": True, "modules_to_save": ["embed_tokens"]}
    first = run(tmp_path, "first", engine="plain", lr=2e-2, tune=TUNE, lora=lora)
    (first.path / "artifact.json").write_text("{}", "utf-8")
    from_first = {"init_from": "first", "parents": {"first": str(first.path)}, "engine": "plain"}
    further = run(tmp_path, "further", tune=TUNE, lora=lora | {"dropout": 0.1}, max_steps=4, **from_first)
    frozen = run(tmp_path, "frozen", tune=TUNE | {"llm": "freeze"}, max_steps=4, **from_first)
    assert rows(further)[0]["loss"] < rows(first)[0]["loss"] - 0.5, "it continues where the first ended"
    before, after, kept = tensors(first), tensors(further), tensors(frozen)
    adapter = {name for name in before if name.startswith("adapter.")}
    assert adapter
    assert adapter == {name for name in after if name.startswith("adapter.")}
    assert any(not torch.equal(before[name], after[name]) for name in adapter)
    assert all(torch.equal(before[name], kept[name]) for name in adapter), "frozen, it goes along unchanged"
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("llm."))


def test_adapters_of_another_shape_are_not_trained_further(tmp_path):
    first = run(tmp_path, "first", engine="plain", tune=TUNE, lora=LORA)
    (first.path / "artifact.json").write_text("{}", "utf-8")
    changes = {"init_from": "first", "parents": {"first": str(first.path)}, "engine": "plain", "tune": TUNE}
    job = make_job(tmp_path, "next", lora=LORA | {"rslora": True}, **changes)
    with pytest.raises(AssertionError, match=r"adapter of another shape: use_rslora False"):
        forked.run(execute, 1, job.to_json(), group=False)


@pytest.mark.parametrize("dora", [False, True])
def test_the_towers_adapters_are_in_the_tower_that_is_saved(tmp_path, dora):
    """The model loaded from the result has the loss that the one in training had."""
    tuned = {"llm": "freeze", "tower": "lora", "connector": "freeze"}
    asked = HELD_OUT | {"max_samples": None, "generate": 0, "steps": 6}
    shape = LORA | {"dora": dora, "targets": ["q_proj", "fc2"]}
    job = job_with(tmp_path, "eye", engine="plain", eval=asked, tune=tuned, tower_lora=shape, lr=2e-2)
    finish(job)
    (reference,) = forked.run(_loss_of, 1, job.to_json(), group=False)
    assert scores(job)[-1]["loss"] == pytest.approx(reference, abs=1e-5)
    assert not any("lora" in name for name in tensors(job))


def test_only_the_last_blocks_train(tmp_path):
    tuned = {"llm": "full", "tower": "full", "connector": "freeze", "llm_last": 1, "tower_last": 1}
    job = run(tmp_path, "last", engine="plain", tune=tuned, max_steps=2)
    from safetensors.torch import load_file

    for part, changed in (("llm", "model.layers.1."), ("tower", "layers.0.")):
        before = load_file(tmp_path / "parts" / part / "model.safetensors")
        after = load_file(job.path / "weights" / part / "model.safetensors")
        different = {name for name in before if not torch.equal(before[name], after[name])}
        assert different
        assert all(changed in name for name in different), (part, different)


def test_more_last_blocks_than_there_are_is_refused(tmp_path):
    job = make_job(tmp_path, "last", engine="plain", tune={**TUNE, "llm": "full", "llm_last": 9})
    with pytest.raises(AssertionError, match="there are 2 blocks to train the last 9 of"):
        forked.run(execute, 1, job.to_json(), group=False)
