"""FSDP2 against plain PyTorch on one rank: losses, norms, weights, checkpoints, export."""

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import compare, execute, make_job, rows, run, tensors, weights
from tests.pico import pico_model_config

pytestmark = pytest.mark.ranks

LORA = {"r": 4, "alpha": 8.0, "dropout": 0.1, "targets": "all-linear", "bias": "none", "modules_to_save": []}
ALL = {"llm": "full", "tower": "full", "connector": "full"}
# A frozen LLM between a trained tower and the loss: gradients pass through what does not learn.
MIXED = {"llm": "freeze", "tower": "full", "connector": "full"}
ADAPTER = {"llm": "lora", "tower": "freeze", "connector": "full"}
# Clipped hard, and with an eps that makes AdamW see the scale of what is left.
CLIP = {"max_grad_norm": 0.05, "eps": 1e-1}
FSDP = {"engine": "fsdp", "zero": 3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The reference, everything trained."""
    folder = tmp_path_factory.mktemp("fsdp")
    return folder, run(folder, "plain", engine="plain", tune=ALL, **CLIP)


@pytest.mark.parametrize(("n", "zero", "more"), [(1, 3, {}), (2, 3, {"micro_batch": 1}), (2, 2, {"offload": "cpu"})])
def test_fsdp_equals_plain(plain, n, zero, more):
    folder, reference = plain
    job = run(folder, f"fsdp{zero}x{n}", n, engine="fsdp", zero=zero, tune=ALL, **CLIP, **more)
    compare(reference, job)
    truth, found = tensors(reference), tensors(job)
    assert truth.keys() == found.keys()
    for name, tensor in truth.items():
        if not name.endswith("k_proj.bias"):  # its gradient is rounding noise, which AdamW blows up
            assert (tensor - found[name]).abs().mean() < 1e-5, name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixed", {"tune": MIXED}),
        ("adapter", {"tune": ADAPTER, "lora": LORA | {"dropout": 0.0}}),
        ("checkpointing", {"tune": ALL, "gradient_checkpointing": True}),
    ],
)
def test_frozen_parts_adapters_and_checkpointing(tmp_path, name, changes):
    truth = run(tmp_path, "plain", engine="plain", max_steps=4, **changes)
    job = run(tmp_path, name, 2, max_steps=4, **FSDP, **changes)
    compare(truth, job)
    assert tensors(truth).keys() == tensors(job).keys()
    for part in ("llm", "tower"):
        if changes["tune"][part] in ("freeze", "lora"):
            file = f"weights/{part}/model.safetensors"
            assert weights(truth)[file] == weights(job)[file]


def test_bf16_computes_in_halves_and_keeps_whole_weights(plain):
    folder, reference = plain
    job = run(folder, "bf16", 2, precision="bf16", tune=ALL, **CLIP, **FSDP)
    compare(reference, job, loss_atol=5e-2, norm_rtol=0.1)
    assert rows(job)[0]["loss"] != rows(reference)[0]["loss"]
    assert {str(tensor.dtype) for tensor in tensors(job).values()} == {"torch.float32"}


def test_resume_is_bit_identical_and_writes_no_pickle(tmp_path):
    changes = {"tune": ADAPTER, "lora": LORA, "save_steps": 3, "save_total_limit": 9, **FSDP}
    whole = run(tmp_path, "whole", 2, **changes)
    job = make_job(tmp_path, "again", ranks_per_node=2, max_steps=6, **changes)
    (job.path / "checkpoints").mkdir()
    saved = whole.path / "checkpoints" / "step-3"
    assert {file.suffix for file in (saved / "fsdp").iterdir()} == {".safetensors"}
    assert len(list((saved / "fsdp").iterdir())) == 2, "each rank writes its own"
    saved.rename(job.path / "checkpoints" / "step-3")
    forked.run(execute, 2, job.to_json())
    assert rows(job) == rows(whole)[3:]
    assert weights(job) == weights(whole)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Rows of two tokens around every image train, and the connector: the reference, and how."""
    folder = tmp_path_factory.mktemp("rows")
    model = pico_model_config(folder / "parts").model_copy(update={"image_markers": ["<first>", "<last>"]})
    changes = {"model": model, "tune": {"llm": "new_tokens", "tower": "freeze", "connector": "full"}, **CLIP}
    return folder, changes, run(folder, "plain", engine="plain", **changes)


ROWS = "llm.model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("n", "more"),
    [
        (1, {}),
        (2, {"micro_batch": 1}),  # gradients of two micro batches are added
        (2, {"zero": 2, "offload": "cpu"}),
        (3, {"micro_batch": 2, "global_batch": 6}),  # the new rows begin within a shard, and its last is shorter
    ],
)
def test_rows_of_new_tokens_train_as_in_plain(marked, n, more):
    folder, changes, truth = marked
    if "global_batch" in more:
        truth = run(folder, "larger", engine="plain", **changes, global_batch=more["global_batch"])
    job = run(folder, f"rows{n}{len(more)}", n, **(FSDP | changes | more))
    compare(truth, job)
    expected, found = tensors(truth), tensors(job)
    assert expected.keys() == found.keys()
    moved = (expected[ROWS] - found[ROWS]).abs()
    assert moved[-2:].mean() < 1e-5
    assert moved[:-2].max() == 0.0, "every other row is bit-equal"
    begun = found[ROWS][:-2].mean(0)  # what the new rows were made of
    assert (found[ROWS][-2:] - begun).abs().amax(1).min() > 1e-4, "both have learned"
    (tokens,) = forked.run(_tokens_of_the_last_rows, 1, str(job.path), group=False)
    assert tokens == ["<first>", "<last>"]


def _tokens_of_the_last_rows(folder):
    """The tokens of an exported model whose embeddings are its last two rows."""
    from pathlib import Path

    import torch

    from vlmrun.formats import load as saved

    loaded = saved.load(Path(folder), dtype=torch.float32, attention="sdpa")
    n = loaded.vlm.llm.get_input_embeddings().weight.shape[0]
    return loaded.tokenizer.convert_ids_to_tokens([n - 2, n - 1])


def test_rows_of_new_tokens_resume_bit_identical(marked):
    folder, changes, _ = marked
    changes = FSDP | changes | {"save_steps": 3, "save_total_limit": 9}
    whole = run(folder, "whole", 2, **changes)
    job = make_job(folder, "again", ranks_per_node=2, max_steps=6, **changes)
    (job.path / "checkpoints").mkdir()
    (whole.path / "checkpoints" / "step-3").rename(job.path / "checkpoints" / "step-3")
    forked.run(execute, 2, job.to_json())
    assert rows(job) == rows(whole)[3:]
    assert weights(job) == weights(whole)


def _loaded(text, checkpoint):
    """The weights that an engine of this job has after loading, on rank 0."""
    import json
    from pathlib import Path

    from vlmrun.config.job import StageJob
    from vlmrun.names import PARTS
    from vlmrun.train import dist, engine, model, optim

    job = StageJob.model_validate(json.loads(text))
    with dist.session(job.hardware):
        vlm = model.load(job, job.stage, None).vlm
        built = engine.create(vlm, optim.groups(vlm, job.stage.optim), job.stage, job.hardware, None)
        built.load(Path(checkpoint))
        return {f"{part}.{name}": t.numpy() for part in PARTS for name, t in built.gather(part)}


def _answers(text):
    """Greedy continuations of a picture and a text, by the engine of this job after one update, and twice."""
    import json

    import torch

    from vlmrun.config.job import StageJob
    from vlmrun.ids import IMAGE_TOKEN
    from vlmrun.train import dist, engine, model, optim

    job = StageJob.model_validate(json.loads(text))
    with dist.session(job.hardware):
        vlm = model.load(job, job.stage, None).vlm
        built = engine.create(vlm, optim.groups(vlm, job.stage.optim), job.stage, job.hardware, None)
        ids = torch.tensor([[0, *[IMAGE_TOKEN] * vlm.image_tokens(None), 7, 9]])
        pixels = torch.ones(1, 3, vlm.image_size, vlm.image_size)
        batch = {"input_ids": ids, "labels": ids.clamp(min=-100), "attention_mask": ids != -1, "pixels": pixels}
        answers = []
        for _ in range(2):
            vlm.train()
            built.backward(built.forward(batch | {"layouts": None}))
            built.step(1.0)
            vlm.eval()
            with built.readable():
                made = vlm.generate(ids, batch["attention_mask"], pixels, max_new_tokens=6, eos_ids=[2])
            answers.append(made.tolist())
        return answers


def test_the_model_can_answer_between_updates(tmp_path):
    common = {"tune": ALL, "global_batch": 2, "micro_batch": 1}
    plain = make_job(tmp_path, "plain", engine="plain", **(common | {"global_batch": 1}))
    (truth,) = forked.run(_answers, 1, plain.to_json(), group=False)
    job = make_job(tmp_path, "fsdp", ranks_per_node=2, **common, **FSDP)
    assert forked.run(_answers, 2, job.to_json()) == [truth, truth]
    assert all(len(row) == 6 for answer in truth for row in answer), "answers long enough to differ"


def test_a_checkpoint_of_two_ranks_is_read_by_one(tmp_path):
    whole = run(tmp_path, "whole", 2, tune=ALL, max_steps=3, **FSDP)
    job = make_job(tmp_path, "one", tune=ALL, max_steps=3, **FSDP)
    (found,) = forked.run(_loaded, 1, job.to_json(), str(whole.path / "checkpoints" / "step-3"), group=False)
    for name, tensor in tensors(whole).items():
        if name.startswith(("llm.", "connector.")):
            assert (tensor.numpy() == found[name]).all(), name


def _cut(text):
    """How many parameters are cut, and whether blocks are units of their own."""
    import json

    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from vlmrun.config.job import StageJob
    from vlmrun.train import dist, engine, model, optim

    job = StageJob.model_validate(json.loads(text))
    with dist.session(job.hardware):
        vlm = model.load(job, job.stage, None).vlm
        engine.create(vlm, optim.groups(vlm, job.stage.optim), job.stage, job.hardware, None)
        units = [name for name, module in vlm.named_modules() if isinstance(module, FSDPModule)]
        pieces = sum(p.to_local().numel() for p in vlm.parameters() if isinstance(p, DTensor))
        return units, pieces, sum(p.numel() for p in vlm.parameters())


def test_every_block_is_a_unit_and_every_rank_holds_half(tmp_path):
    job = make_job(tmp_path, ranks_per_node=2, **FSDP)
    (units, first, n), (_, second, _) = forked.run(_cut, 2, job.to_json())
    assert [name for name in units if name.startswith("llm.")] == ["llm.model.layers.0", "llm.model.layers.1"]
    assert "tower" in units
    assert sum(name.startswith("tower.") for name in units) == 2
    assert first + second == n
    assert first < 0.51 * n
