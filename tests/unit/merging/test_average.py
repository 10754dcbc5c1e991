"""Averaging: the weighted mean, and every reason to refuse."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.models import averaging, finish, logits, merging
from vlmrun.errors import CheckpointError
from vlmrun.formats.load import describe, load
from vlmrun.merging.average import average
from vlmrun.merging.merge import merge
from vlmrun.weights.reader import Reader

HOW = {"dtype": torch.float32, "attention": "sdpa"}


def test_an_average_is_a_model_between_its_sources(tmp_path, make):
    first, second = make("first", 1, "llm", "connector"), make("second", 2, "llm", "connector")
    told = []
    summary = average(
        averaging(2, [0.25, 0.75]),
        [first, second],
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
    summary = average(averaging(3, [0.2, 0.3, 0.5]), [one, twin, one], tmp_path / "mean/weights")
    assert summary["averaged"] == 0
    for part in ("llm", "tower", "connector"):
        ours, theirs = Reader(tmp_path / "mean/weights" / part), Reader(one / "weights" / part)
        assert all(torch.equal(ours.get(name), theirs.get(name)) for name in theirs.names())


def test_the_type_can_be_chosen(tmp_path, make):
    models = [make("first", 1, "llm"), make("second", 2, "llm")]
    average(averaging(2, [0.5, 0.5], dtype="bf16"), models, tmp_path / "mean/weights")
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
        average(averaging(2, [0.5, 0.5]), [first, other.parent], tmp_path / "mean/weights")
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
        average(averaging(2, [0.5, 0.5]), [first, other], tmp_path / "mean/weights")


def test_adapters_are_to_be_merged_first(tmp_path, make):
    models = [make("first", 1, adapter=True), make("second", 2, adapter=True)]
    with pytest.raises(CheckpointError, match="merge it first") as caught:
        average(averaging(2, [0.5, 0.5]), models, tmp_path / "mean/weights")
    assert len(caught.value.problems) == 2


def _value(folder, name):
    part, _, tensor = name.partition(".")
    return Reader(folder / "weights" / part).get(tensor)


def test_rules_give_parts_and_layers_weights_of_their_own(tmp_path, make):
    first, second = make("first", 1, "llm", "connector"), make("second", 2, "llm", "connector")
    rules = [
        {"tensors": r"^llm\.model\.layers\.0\.", "weights": [1.0, 0.0]},
        {"tensors": "layers", "weights": [0.2, 0.8]},  # the connector's are called so as well
    ]
    average(averaging(2, [0.5, 0.5], rules=rules), [first, second], tmp_path / "mean/weights")
    mean, n_seen = tmp_path / "mean", dict.fromkeys((0.0, 0.8, 0.5), 0)
    for part in ("llm", "connector"):
        for name in Reader(mean / "weights" / part).names():
            share = 0.0 if name.startswith("model.layers.0.") else 0.8 if "layers" in name else 0.5
            n_seen[share] += 1
            a, b, found = (_value(folder, f"{part}.{name}") for folder in (first, second, mean))
            assert torch.allclose(found, (1 - share) * a + share * b, atol=1e-6), name
    assert all(n_seen.values())
    with pytest.raises(CheckpointError, match=r"no tensor fits the rule '\^vision'(.|\n)*names are such as"):
        average(
            averaging(2, [0.5, 0.5], rules=[{"tensors": "^vision", "weights": [1.0, 0.0]}]),
            [first, second],
            tmp_path / "none/weights",
        )


def test_weights_may_be_normalised_fade_or_scale(tmp_path, make):
    models = [make(f"model{number}", number, "connector") for number in range(3)]
    name = "connector.layers.0.weight"
    a, b, c = (_value(model, name) for model in models)

    def made(weights=None, **changes):
        average(averaging(3, weights, **changes), models, tmp_path / "mean/weights")
        return _value(tmp_path / "mean", name)

    normalised = made([2.0, 1.0, 1.0], method={"name": "linear", "sum": "normalize"})
    assert torch.allclose(normalised, 0.5 * a + 0.25 * b + 0.25 * c, atol=1e-6)
    assert torch.allclose(made(ema=0.6), 0.6 * (0.6 * a + 0.4 * b) + 0.4 * c, atol=1e-6)
    scaled = made([1.0, 0.5, 0.5], method={"name": "linear", "sum": "any"})
    assert torch.allclose(scaled, a + 0.5 * b + 0.5 * c, atol=1e-6)
    tower = Reader(tmp_path / "mean/weights/tower")
    same = Reader(models[0] / "weights/tower")
    assert torch.allclose(tower.get(tower.names()[0]), 2 * same.get(tower.names()[0])), "scaled although all are equal"


VECTORS = {"normalize": False, "scale": 1.0}


def test_changes_are_counted_from_a_base_model(tmp_path, make):
    base = tmp_path / "base"
    first, second = make("first", 1, "llm"), make("second", 2, "llm")
    description = base / "weights/model.json"
    text = json.loads(description.read_text())
    description.unlink()
    description.write_text(json.dumps(text | {"template": {"name": "plain"}, "image_aspect": "pad"}))
    finish(base)
    stage = averaging(2, [1.0, 1.0], method={"name": "task_arithmetic", **VECTORS}, base_model="base")
    summary = average(stage, [first, second], tmp_path / "sum/weights", base=base)
    name = "llm.model.layers.1.mlp.up_proj.weight"
    b, x, y = (_value(folder, name) for folder in (base, first, second))
    assert torch.allclose(_value(tmp_path / "sum", name), x + y - b, atol=1e-6)
    assert describe(tmp_path / "sum") == describe(first), "a base trained with captions gives tensors only"
    connector = "weights/connector/model.safetensors"
    assert (tmp_path / "sum" / connector).stat().st_ino == (first / connector).stat().st_ino
    assert summary["averaged"] < summary["tensors"]


@pytest.mark.parametrize(
    "method",
    [
        {"name": "slerp", "sum": "one"},
        {"name": "ties", "density": 0.5, "sign": "sum", **VECTORS},
        {"name": "della", "density": 0.5, "epsilon": 0.1, "rescale": True, "sign": "sum", "seed": 0, **VECTORS},
        {"name": "model_stock"},
    ],
    ids=lambda method: method["name"],
)
def test_other_methods_write_models_that_answer(tmp_path, make, method):
    first, second = make("first", 1, "llm", "connector"), make("second", 2, "llm", "connector")
    base = None if method["name"] == "slerp" else tmp_path / "base"
    weights = None if method["name"] == "model_stock" else [0.5, 0.5]
    stage = averaging(2, weights, method=method, base_model=None if base is None else "base")
    average(stage, [first, second], tmp_path / "made/weights", base=base)
    found = load(tmp_path / "made", **HOW)
    assert torch.isfinite(logits(found)).all()
    assert not torch.equal(logits(found), logits(load(first, **HOW)))
    whole = load_file(tmp_path / "made/weights/llm/model.safetensors")
    assert whole.keys() == load_file(first / "weights/llm/model.safetensors").keys()


@pytest.mark.parametrize("where", ["llm", "tower", "connector"])
@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_source_is_found_and_leaves_nothing(tmp_path, make, where, harm):
    first, second = make("first", 1, "llm", "connector"), make("second", 2, "llm", "connector")
    harmed = finish(shutil.copytree(second, tmp_path / "harmed"))
    file = harmed / "weights" / where / "model.safetensors"
    status, content = file.stat(), bytearray(file.read_bytes())
    if harm == "flip":
        content[-5] ^= 4
    else:
        del content[-16:]
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would: nothing looks new
    with pytest.raises(CheckpointError, match="content changed" if harm == "flip" else "cannot be read"):
        average(averaging(2, [0.5, 0.5]), [first, harmed], tmp_path / "mean/weights")
    assert not (tmp_path / "mean/weights").exists()


def test_whole_numbers_that_differ_are_refused(tmp_path, make):
    models = [make("first", 1, "connector"), make("second", 2, "connector")]
    for model, number in zip(models, (3, 3), strict=True):
        file = model / "weights/tower/model.safetensors"
        tensors = load_file(file) | {"steps": torch.tensor([number])}
        file.unlink()
        save_file(tensors, file)
        finish(model)
    stage = averaging(2, [1.0, 2.0], method={"name": "linear", "sum": "normalize"})
    average(stage, models, tmp_path / "mean/weights")
    assert torch.equal(_value(tmp_path / "mean", "tower.steps"), torch.tensor([3])), "equal ones are kept"
    file = models[1] / "weights/tower/model.safetensors"
    save_file(load_file(file) | {"steps": torch.tensor([4])}, file)
    finish(models[1])
    with pytest.raises(CheckpointError, match=r"tower\.steps holds whole numbers that differ"):
        average(stage, models, tmp_path / "none/weights")
    assert not (tmp_path / "none/weights").exists()


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "merge"])
def test_no_more_than_a_slice_is_ever_read_or_written(tmp_path, make, monkeypatch, method):
    """The bound on memory, as tests can hold it: no tensor of a base comes whole, however large it is."""
    models = [make(name, seed, "llm", adapter=method == "merge") for seed, name in enumerate(("first", "second"), 1)]
    monkeypatch.setattr("vlmrun.weights.writer.SLICE", 500)
    monkeypatch.setattr("vlmrun.merging.methods.blocks.SLICE", 500)
    sizes, flat = [], Reader.flat

    def watched(self, name, start, stop):
        sizes.append(stop - start)
        return flat(self, name, start, stop)

    whole, get = [], Reader.get
    monkeypatch.setattr(Reader, "flat", watched)
    monkeypatch.setattr(Reader, "get", lambda self, name: whole.append(name) or get(self, name))
    if method == "merge":
        merge(merging(), models[:1], tmp_path / "made/weights")
        assert all("lora_" in name for name in whole)
    else:
        values = {"ties": {"density": 0.5, "sign": "sum", **VECTORS}}.get(method, {"sum": "one"})
        base = tmp_path / "base" if method == "ties" else None
        stage = averaging(2, [0.5, 0.5], method={"name": method, **values}, base_model="base" if base else None)
        average(stage, models, tmp_path / "made/weights", base=base)
        assert whole == []
    assert 32 <= max(sizes) <= 500, "several rows at a time, but not all"
    monkeypatch.undo()
    load(tmp_path / "made", **HOW)
