"""Ranks that share the LLM's layers or its sequences train what one rank trains."""

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import compare, execute, make_job, rows, run, tensors, weights, write_records
from tests.pico import WIDE, pico_llm, pico_model_config

pytestmark = pytest.mark.ranks

ALL = {"llm": "full", "tower": "full", "connector": "full"}
ALIGN = {"llm": "freeze", "tower": "freeze", "connector": "full"}
ADAPTER = {"llm": "lora", "tower": "freeze", "connector": "full"}
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear", "bias": "none", "modules_to_save": []}
# Gradients are clipped hard, with an eps that lets AdamW see the scale of what is left (T18).
CLIP = {"max_grad_norm": 0.05, "eps": 1e-1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    return folder, run(folder, "plain", engine="plain", tune=ALL, **CLIP)


def _same_weights(truth, found):
    truth, found = tensors(truth), tensors(found)
    assert {name: tensor.shape for name, tensor in truth.items()} == {name: t.shape for name, t in found.items()}
    for name, tensor in truth.items():
        if not name.endswith("k_proj.bias"):
            assert (tensor - found[name]).abs().mean() < 1e-5, name


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_t17_two_ranks_share_the_llms_layers(plain, zero):
    folder, reference = plain
    job = run(folder, f"tensor{zero}", 2, zero=zero, tensor_parallel=2, tune=ALL, **CLIP)
    compare(reference, job)
    _same_weights(reference, job)


@pytest.mark.parametrize(
    "engine",
    [{"zero": 0}, {"zero": 2}, {"zero": 3}, {"engine": "fsdp", "zero": 3}],
    ids=["zero0", "zero2", "zero3", "fsdp"],
)
def test_t18_two_ranks_share_every_sequence(plain, engine):
    folder, reference = plain
    name = f"sequence-{engine.get('engine', '')}{engine['zero']}"
    job = run(folder, name, 2, sequence_parallel=2, tune=ALL, **CLIP, **engine)
    compare(reference, job)
    _same_weights(reference, job)


@pytest.mark.parametrize("shared", ["tensor_parallel", "sequence_parallel"])
def test_two_groups_of_two_read_different_samples(plain, shared):
    """Four ranks: data-parallel groups, ZeRO-3 across all of them, and accumulation."""
    folder, reference = plain
    job = run(folder, f"four-{shared}", 4, zero=3, micro_batch=1, tune=ALL, **CLIP, **{shared: 2})
    compare(reference, job)
    _same_weights(reference, job)


def test_a_frozen_llm_shared_by_two_ranks_trains_the_connector(tmp_path):
    """Megatron's pretraining: tensor parallel, only the projector learns."""
    truth = run(tmp_path, "plain", engine="plain", tune=ALIGN, max_steps=3)
    job = run(tmp_path, "tensor", 2, zero=1, tensor_parallel=2, tune=ALIGN, max_steps=3)
    compare(truth, job)
    assert weights(truth)["weights/llm/model.safetensors"] == weights(job)["weights/llm/model.safetensors"]


def test_adapters_checkpointing_and_micro_mean_over_shared_sequences(tmp_path):
    changes = {"tune": ADAPTER, "lora": LORA, "loss": "micro_mean", "gradient_checkpointing": True, "max_steps": 3}
    truth = run(tmp_path, "plain", engine="plain", **changes)
    compare(truth, run(tmp_path, "sequence", 2, zero=3, sequence_parallel=2, **changes))


@pytest.mark.parametrize(("shared", "zero"), [("tensor_parallel", 2), ("sequence_parallel", 3)])
def test_bf16_follows_fp32(plain, shared, zero):
    folder, reference = plain
    job = run(folder, f"bf16-{shared}", 2, zero=zero, precision="bf16", tune=ALL, **CLIP, **{shared: 2})
    compare(reference, job, loss_atol=5e-2, norm_rtol=0.1)
    assert rows(job)[0]["loss"] != rows(reference)[0]["loss"]


def test_packed_weights_over_shared_sequences(tmp_path):
    pico_llm(tmp_path / "parts" / "llm", **WIDE)
    changes = {
        "model": pico_model_config(tmp_path / "parts"),
        "tune": ADAPTER | {"llm": "qlora"},
        "lora": LORA,
        "quant": {"bits": 4, "type": "nf4", "double": True},
        "max_steps": 3,
    }
    truth = run(tmp_path, "plain", engine="plain", **changes)
    compare(truth, run(tmp_path, "sequence", 2, zero=2, sequence_parallel=2, **changes))


def test_text_alone_over_shared_sequences(tmp_path):
    """A batch without a picture, and pieces without a supervised token."""
    write_records(tmp_path, 8, text_only="all")
    changes = {"tune": {"llm": "full", "tower": "freeze", "connector": "freeze"}, "max_steps": 3}
    truth = run(tmp_path, "plain", engine="plain", **changes)
    compare(truth, run(tmp_path, "sequence", 2, zero=2, sequence_parallel=2, **changes))


@pytest.mark.parametrize("shared", ["tensor_parallel", "sequence_parallel"])
def test_resume_is_bit_identical(tmp_path, shared):
    changes = {"tune": ALL, "save_steps": 2, "save_total_limit": 9, "max_steps": 4, "zero": 2, shared: 2}
    whole = run(tmp_path, "whole", 2, **changes)
    job = make_job(tmp_path, "again", ranks_per_node=2, **changes)
    (job.path / "checkpoints").mkdir()
    (whole.path / "checkpoints" / "step-2").rename(job.path / "checkpoints" / "step-2")
    forked.run(execute, 2, job.to_json())
    assert rows(job) == rows(whole)[2:]
    assert weights(job) == weights(whole)
