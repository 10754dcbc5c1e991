"""Plain PyTorch on one rank is the truth; every way of running the same job must agree with it."""

import json

import pytest

from tests.integration.jobs import STAGE, compare, execute, make_job, rows, said, tensors, weights
from tests.pico import pico_model_config

pytestmark = pytest.mark.ranks

LOSS_ATOL = 1e-5  # fp32
WEIGHT_ATOL = 1e-5  # mean over a tensor after ten updates of size 3e-3; measured 1e-6
BF16_ATOL = 5e-2  # bf16 has 8 bits; losses are of size 5
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear", "bias": "none", "modules_to_save": []}
TUNE_LORA = {"llm": "lora", "tower": "freeze", "connector": "full"}
TUNE_ALL = {"llm": "full", "tower": "full", "connector": "full"}


def _run(ranks, folder, name, n=1, **changes):
    job = make_job(folder, name, ranks_per_node=n, **({"max_steps": 10} | changes))
    return job, ranks(execute, n, job.to_json(), group=n > 1)[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The reference: everything trained, one process, no DeepSpeed."""
    from tests.integration import ranks as forked

    folder = tmp_path_factory.mktemp("engines")
    job, _ = _run(forked.run, folder, "plain", engine="plain", tune=TUNE_ALL)
    assert rows(job)[-1]["loss"] < rows(job)[0]["loss"] - 0.5, "the reference must really learn"
    return folder, job


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_every_stage_equals_plain(ranks, plain, zero, n):
    folder, reference = plain
    job, summary = _run(ranks, folder, f"zero{zero}x{n}", n, zero=zero, tune=TUNE_ALL)
    assert summary["engine"] == f"ZeRO-{zero}"
    compare(reference, job)
    truth, found = tensors(reference), tensors(job)
    assert truth.keys() == found.keys()
    for name, tensor in truth.items():
        # Softmax does not see a key's bias: its gradient is rounding noise, which AdamW blows up to full size.
        if not name.endswith("k_proj.bias"):
            assert (tensor - found[name]).abs().mean() < WEIGHT_ATOL, name


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_accumulation_and_ranks_do_not_change_a_token_mean(ranks, plain, zero):
    folder, reference = plain
    job, _ = _run(ranks, folder, f"cut{zero}", 2, zero=zero, micro_batch=1, tune=TUNE_ALL)
    compare(reference, job)


def test_micro_mean_is_the_mean_of_micro_batch_means(ranks, plain, tmp_path):
    folder, reference = plain
    truth, _ = _run(ranks, folder, "micro-plain", engine="plain", loss="micro_mean", tune=TUNE_ALL)
    job, _ = _run(ranks, folder, "micro-2", 2, zero=2, loss="micro_mean", tune=TUNE_ALL)
    compare(truth, job)
    assert abs(rows(truth)[0]["loss"] - rows(reference)[0]["loss"]) > 1e-3, "the two losses must differ on this data"


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_follows_fp32(ranks, plain, zero):
    folder, reference = plain
    job, _ = _run(ranks, folder, f"bf16-{zero}", 2, zero=zero, precision="bf16", tune=TUNE_ALL)
    compare(reference, job, loss_atol=BF16_ATOL, norm_rtol=0.1)
    assert rows(job) != rows(reference)
    dtypes = {str(tensor.dtype) for tensor in tensors(job).values()}
    assert dtypes == {"torch.bfloat16"}


def test_plain_bf16_keeps_fp32_weights_under_autocast(ranks, plain):
    folder, reference = plain
    job, _ = _run(ranks, folder, "plain-bf16", engine="plain", precision="bf16", tune=TUNE_ALL)
    compare(reference, job, loss_atol=BF16_ATOL, norm_rtol=0.1)
    assert rows(job)[0]["loss"] != rows(reference)[0]["loss"]
    assert {str(tensor.dtype) for tensor in tensors(job).values()} == {"torch.float32"}


@pytest.mark.parametrize(("zero", "n"), [(2, 1), (3, 2)])
def test_lora_trains_an_adapter_and_the_connector(ranks, tmp_path, zero, n):
    truth, _ = _run(ranks, tmp_path, "plain", engine="plain", tune=TUNE_LORA, lora=LORA)
    job, summary = _run(ranks, tmp_path, "lora", n, zero=zero, tune=TUNE_LORA, lora=LORA)
    compare(truth, job)
    assert "llm        lora" in said(job)
    names = {path.parent.name for path in (job.path / "weights").glob("*/*.safetensors")}
    assert names == {"llm", "tower", "connector", "adapter"}
    assert all(tensor.numel() for tensor in tensors(job).values())
    untouched = (tmp_path / "parts" / "llm" / "model.safetensors").read_bytes()
    assert (job.path / "weights" / "llm" / "model.safetensors").read_bytes() == untouched
    assert summary["trainable"] == 5696  # 4096 of LoRA, 1600 of the connector


def test_gradient_checkpointing_changes_nothing(ranks, plain):
    folder, reference = plain
    job, _ = _run(ranks, folder, "checkpointing", 2, zero=2, gradient_checkpointing=True, tune=TUNE_ALL)
    compare(reference, job)


NUMBERS = STAGE["deepspeed"]
WAYS = {
    "hpz": {"deepspeed": NUMBERS | {"zero_hpz_partition_size": 2}},
    "optimizer-offload": {"offload": "cpu", "deepspeed": NUMBERS | {"offload_param": "none", "pin_memory": False}},
    "all-offloaded": {"offload": "cpu", "deepspeed": NUMBERS | {"pin_memory": False}},
    "kept-on-cpu": {"gradient_checkpointing": True, "offload_checkpoints": True},
    "small-buckets": {"deepspeed": NUMBERS | {"reduce_bucket_size": 5000, "sub_group_size": 9000}},
}


@pytest.mark.parametrize("way", WAYS)
def test_where_things_lie_changes_nothing(ranks, plain, way):
    folder, reference = plain
    job, _ = _run(ranks, folder, way, 2, zero=3, tune=TUNE_ALL, **WAYS[way])
    compare(reference, job)


def _kept(text):
    """How many tensors were moved to the computer's memory and taken back in one training."""
    import torch

    moved = []

    class Counting(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory=False):
            super().__init__(lambda tensor: moved.append(tensor.shape) or tensor, lambda tensor: tensor)

    torch.autograd.graph.save_on_cpu = Counting
    execute(text)
    return len(moved)


def test_what_checkpointing_keeps_is_what_is_offloaded(ranks, tmp_path):
    job = make_job(
        tmp_path, engine="plain", max_steps=1, warmup_ratio=0.0, gradient_checkpointing=True, offload_checkpoints=True
    )
    (moved,) = ranks(_kept, 1, job.to_json(), group=False)
    # Two micro batches, two blocks of the LLM: their inputs, and whatever else enters a block as an argument.
    assert moved >= 4


def test_a_json_of_ones_own_is_laid_over_what_deepspeed_is_told(ranks, plain, tmp_path):
    folder, reference = plain
    own = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 4000},
        "steps_per_print": 5,
        "bf16": {"enabled": "auto"},
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    given = NUMBERS | {"config": str(tmp_path / "own.json")}
    job, _ = _run(ranks, folder, "own", 2, zero=2, tune=TUNE_ALL, deepspeed=given)
    compare(reference, job)
    (tmp_path / "own.json").write_text(json.dumps(own | {"gradient_clipping": 7.0}))
    job = make_job(folder, "refused", ranks_per_node=2, zero=2, deepspeed=given)
    with pytest.raises(AssertionError, match=r"ConfigError: error: gradient_clipping is 7.0, the stage's is 1.0"):
        ranks(execute, 2, job.to_json())


def test_a_drive_without_libaio_is_refused_before_weights_are_loaded(ranks, tmp_path):
    from ctypes.util import find_library

    if find_library("aio") is not None:
        pytest.skip("libaio is installed here")
    given = NUMBERS | {"nvme_path": str(tmp_path)}
    job = make_job(tmp_path, zero=3, offload="nvme", deepspeed=given)
    with pytest.raises(AssertionError, match=r"LaunchError: error: offload to a drive needs.*\n.*\n.*libaio-dev"):
        ranks(execute, 1, job.to_json(), group=False)


def _engine_of(text):
    """The classes a configured job really builds."""
    from vlmrun.config.job import StageJob
    from vlmrun.train import dist, engine, model, optim

    job = StageJob.model_validate(json.loads(text))
    with dist.session(job.hardware):
        config = model.deepspeed_config(job, job.stage)
        vlm = model.load(job, job.stage, config).vlm
        built = engine.create(vlm, optim.groups(vlm, job.stage.optim), job.stage, job.hardware, config)
        inner = getattr(built, "inner", None)
        sharded = sum(getattr(p, "ds_numel", p.numel()) != p.numel() for p in vlm.parameters())
        state = sum(p.numel() for group in built.inner.optimizer.param_groups for p in group["params"]) if inner else 0
        return type(inner).__module__, type(inner).__name__, inner and inner.zero_optimization_stage(), sharded, state


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_stage_configured_with_zero_runs_in_deepspeeds_engine(ranks, tmp_path, zero):
    job = make_job(tmp_path, zero=zero, ranks_per_node=2)
    for module, name, stage, sharded, _ in ranks(_engine_of, 2, job.to_json()):
        assert (module, name, stage) == ("deepspeed.runtime.engine", "DeepSpeedEngine", zero)
        # At stage 3 the matrices must really be taken apart, small as they are.
        assert sharded >= 20 if zero == 3 else sharded == 0


def test_the_optimizer_holds_trainable_parameters_only(ranks, tmp_path):
    tune = {"llm": "freeze", "tower": "freeze", "connector": "full"}
    job = make_job(tmp_path, zero=0, tune=tune)
    assert ranks(_engine_of, 1, job.to_json(), group=False)[0][-1] == 1600


def test_a_second_stage_starts_from_the_first_and_links_what_it_leaves(ranks, tmp_path):
    align = {"llm": "freeze", "tower": "freeze", "connector": "full"}
    first, _ = _run(ranks, tmp_path, "pretrain", tune=align)
    (first.path / "artifact.json").write_text("{}", "utf-8")
    changes = {"init_from": "pretrain", "parents": {"pretrain": str(first.path)}}
    second, _ = _run(ranks, tmp_path, "instruct", 2, zero=3, **changes)
    assert rows(second)[0]["loss"] < rows(first)[0]["loss"] - 0.05
    before, after = weights(first), weights(second)
    assert before["weights/tower/model.safetensors"] == after["weights/tower/model.safetensors"]
    assert before["weights/llm/model.safetensors"] != after["weights/llm/model.safetensors"]
    tower = "weights/tower/model.safetensors"
    assert (first.path / tower).stat().st_ino == (second.path / tower).stat().st_ino


def test_an_unmerged_lora_parent_is_refused(ranks, tmp_path):
    first, _ = _run(ranks, tmp_path, "lora", engine="plain", tune=TUNE_LORA, lora=LORA)
    job = make_job(tmp_path, "next", init_from="lora", parents={"lora": str(first.path)})
    assert job.stage.tune.llm == "full"
    with pytest.raises(AssertionError, match=r"CheckpointError.*not merged"):
        ranks(execute, 1, job.to_json(), group=False)


def test_a_trained_model_loads_again_and_answers_as_it_was_trained(ranks, plain):
    import torch

    from vlmrun.formats.load import load

    _, reference = plain
    vlm = load(reference.path, dtype=torch.float32, attention="sdpa").vlm
    state = vlm.state_dict()
    trained = tensors(reference)
    assert trained["connector.layers.0.weight"].equal(state["connector.layers.0.weight"])
    embedding = trained["llm.model.embed_tokens.weight"]
    assert embedding.equal(state["llm.model.embed_tokens.weight"])


def test_parts_made_at_random_are_the_same_at_every_stage(ranks, tmp_path):
    model = pico_model_config(tmp_path / "parts")
    llm = {
        "_target_": "vlmrun.model.llm.load",
        "path": None,  # as conf/model/llm/pico.yaml says it
        "tokenizer": str(tmp_path / "parts" / "llm"),
        "config": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2},
    }  # fmt: skip
    model = type(model).model_validate(model.model_dump(by_alias=True) | {"llm": llm})
    first = {}
    for name, changes in {"plain": {"engine": "plain"}, "zero2": {"zero": 2}, "zero3": {"zero": 3}}.items():
        job, _ = _run(ranks, tmp_path, name, model=model, max_steps=2, **changes)
        first[name] = rows(job)[0]["loss"]
    assert first["zero2"] == pytest.approx(first["plain"], abs=LOSS_ATOL)
    assert first["zero3"] == pytest.approx(first["plain"], abs=LOSS_ATOL)
