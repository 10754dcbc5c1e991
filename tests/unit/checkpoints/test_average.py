"""Averaging: the weighted mean, and every reason to refuse."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.unit.checkpoints.conftest import logits
from vlmrun.checkpoints.average import average, mean
from vlmrun.checkpoints.load import describe, load
from vlmrun.checkpoints.tensors import Reader, Writer
from vlmrun.errors import CheckpointError

HOW = {"dtype": torch.float32, "attention": "sdpa"}


def _folder(folder, values):
    with Writer(folder, 40) as writer:
        for name, value in values.items():
            writer.add(name, value)
    return Reader(folder)


@settings(max_examples=30, deadline=None)
@given(
    n_models=st.integers(2, 4),
    raw=st.lists(st.floats(0.1, 1.0), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_mean_is_the_weighted_sum(tmp_path_factory, n_models, raw, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weights = [value / sum(raw[:n_models]) for value in raw[:n_models]]
    shared = torch.randn(5, generator=generator).to(dtype)
    models = [
        {"a": torch.randn(3, 4, generator=generator).to(dtype), "shared": shared, "steps": torch.tensor([7])}
        for _ in range(n_models)
    ]
    folder = tmp_path_factory.mktemp("mean")
    found = {n: (t, c) for n, t, c in mean([_folder(folder / str(i), m) for i, m in enumerate(models)], weights)}
    exact = sum(weight * model["a"].double() for weight, model in zip(weights, models, strict=True))
    # One rounding to the type, and fp32 sums of at most four terms below it.
    step = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    assert torch.allclose(found["a"][0].double(), exact, atol=step, rtol=step)
    assert found["a"][0].dtype == dtype
    assert torch.equal(found["shared"][0], shared), "equal tensors are kept to the bit whatever the weights"
    assert {name: changed for name, (_, changed) in found.items()} == {"a": True, "shared": False, "steps": False}


def test_whole_numbers_that_differ_are_refused(tmp_path):
    readers = [_folder(tmp_path / str(i), {"steps": torch.tensor([i])}) for i in range(2)]
    with pytest.raises(CheckpointError, match="whole numbers that differ"):
        list(mean(readers, [0.5, 0.5]))


def test_an_average_is_a_model_between_its_sources(tmp_path, make):
    first, second = make("first", 1, "llm", "connector"), make("second", 2, "llm", "connector")
    told = []
    summary = average(
        [first, second],
        [0.25, 0.75],
        tmp_path / "mean/weights",
        report=lambda done, total, _: told.append((done, total)),
    )
    found = load(tmp_path / "mean", **HOW)
    ours, a, b = (dict(m.vlm.named_parameters()) for m in (found, load(first, **HOW), load(second, **HOW)))
    for name, value in ours.items():
        assert torch.allclose(value, 0.25 * a[name] + 0.75 * b[name], atol=1e-6), name
    assert not torch.equal(logits(found), logits(load(first, **HOW)))
    tower = "weights/tower/model.safetensors"
    assert (tmp_path / "mean" / tower).stat().st_ino == (first / tower).stat().st_ino, "the same file in both: linked"
    assert describe(tmp_path / "mean") == describe(first)
    n_tensors = sum(1 for _ in ours)
    n_changed = sum(not torch.equal(a[name], b[name]) for name in ours)
    assert summary == {"models": 2, "tensors": n_tensors, "averaged": n_changed}
    assert told == [(done, n_tensors) for done in range(1, n_tensors + 1)]


def test_the_average_of_a_model_with_itself_is_itself(tmp_path, make):
    one = make("one", 1, "llm", "connector")
    twin = shutil.copytree(one, tmp_path / "twin")
    summary = average([one, twin, one], [0.2, 0.3, 0.5], tmp_path / "mean/weights")
    assert summary["averaged"] == 0
    for part in ("llm", "tower", "connector"):
        ours, theirs = Reader(tmp_path / "mean/weights" / part), Reader(one / "weights" / part)
        assert all(torch.equal(ours.get(name), theirs.get(name)) for name in theirs.names())


def test_the_type_can_be_chosen(tmp_path, make):
    models = [make("first", 1, "llm"), make("second", 2, "llm")]
    average(models, [0.5, 0.5], tmp_path / "mean/weights", dtype="bf16")
    for part in ("llm", "tower", "connector"):
        reader = Reader(tmp_path / "mean/weights" / part)
        assert {reader.dtype(name) for name in reader.names()} == {torch.bfloat16}
    assert describe(tmp_path / "mean")["dtype"] == "bf16"
    load(tmp_path / "mean", dtype=torch.bfloat16, attention="sdpa")


def _change(path, **changes):
    value = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(value | changes))


def test_every_difference_is_listed(tmp_path, make):
    first, second = make("first", 1, "llm", "connector"), make("second", 2, "llm", "connector")
    other = shutil.copytree(second, tmp_path / "other") / "weights"
    tensors = load_file(other / "connector/model.safetensors")
    tensors["extra"] = torch.zeros(1)
    del tensors["layers.0.bias"]
    tensors["layers.2.bias"] = torch.zeros(7)
    save_file(tensors, other / "connector/model.safetensors")
    _change(other / "llm/config.json", rope_theta=5.0, transformers_version="0.0.0")
    _change(other / "tower/preprocessor_config.json", image_mean=[0, 0, 0])
    _change(other / "model.json", template={"name": "vicuna_v1"}, image_aspect="pad")
    with pytest.raises(CheckpointError) as caught:
        average([first, other.parent], [0.5, 0.5], tmp_path / "mean/weights")
    whats = [problem.what for problem in caught.value.problems]
    assert whats == [
        "connector: layers.0.bias is missing",
        "connector: extra is not in the first model",
        "connector: layers.2.bias is [7], in the first model [32]",
        "llm/config.json differs in: rope_theta",
        "tower/preprocessor_config.json differs in: image_mean",
        *whats[5:],
    ]
    assert [what.split(":")[0] for what in whats[5:]] == [
        "model.json differs in template",
        "model.json differs in image_aspect",
    ]
    assert not (tmp_path / "mean").exists()


def test_another_tokenizer_is_refused(tmp_path, make):
    first, second = make("first", 1, "llm"), make("second", 2, "llm")
    other = shutil.copytree(second, tmp_path / "other")
    tokenizer = other / "weights/llm/tokenizer.json"
    _change(tokenizer, model=json.loads(tokenizer.read_text())["model"] | {"merges": []})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json differs in: model"):
        average([first, other], [0.5, 0.5], tmp_path / "mean/weights")


def test_adapters_are_to_be_merged_first(tmp_path, make):
    models = [make("first", 1, adapter=True), make("second", 2, adapter=True)]
    with pytest.raises(CheckpointError, match="merge it first") as caught:
        average(models, [0.5, 0.5], tmp_path / "mean/weights")
    assert len(caught.value.problems) == 2


def test_weights_that_do_not_sum_to_one_are_a_bug(tmp_path, make):
    one = make("one", 1)
    for weights in ([0.5, 0.6], [1.0]):
        with pytest.raises(AssertionError):
            average([one, one], weights, tmp_path / "mean/weights")
