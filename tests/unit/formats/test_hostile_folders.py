"""Folders from elsewhere: nothing in them hangs, runs, or passes as a model that it is not."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.unit.formats.conftest import to
from vlmrun.errors import CheckpointError
from vlmrun.formats import registry
from vlmrun.formats.convert import written_tensors
from vlmrun.formats.load import load
from vlmrun.model.tokenizers import load_tokenizer

HOW = {"dtype": torch.float32, "attention": "sdpa"}


@pytest.fixture
def copied(tmp_path, model) -> Path:
    """A folder of ours that a test may damage; its files are copies."""
    return Path(shutil.copytree(model, tmp_path / "copied"))


def _changed(file: Path, change) -> None:
    """Writes a file of tensors again, changed."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    "name",
    ["model.json", "llm/config.json", "llm/tokenizer.json", "llm/model.safetensors", "connector/model.safetensors"],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_never_waited_for(copied, tmp_path, name, kind):
    path = copied / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(CheckpointError):
        load(copied, **HOW)
    with pytest.raises(CheckpointError):
        to(copied, tmp_path / "no", "llava")
    assert not (tmp_path / "no").exists()


def test_a_file_without_end_is_not_read_into_memory(copied):
    with (copied / "llm/config.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    with pytest.raises(CheckpointError, match="at most are read"):
        load(copied, **HOW)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 33) | st.text("a<>[|", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "id", "a"]), inner),
    max_leaves=5,
)


def _places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        if not (path and path[-1] in ("vocab", "merges")):
            yield from _places(inner, (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_tokenizer_changed_anywhere_loads_or_is_refused(model, tmp_path, data):
    """Any value of either file in place of any other."""
    folder = tmp_path / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model / "llm", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    values = json.loads((folder / name).read_text())
    path = data.draw(st.sampled_from(list(_places(values))))
    new = data.draw(VALUES)
    if path:
        node = values
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = new
    else:
        values = new
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(values))
    with contextlib.suppress(CheckpointError):
        assert load_tokenizer(folder).get_vocab()


def test_an_empty_vocabulary_and_a_bad_expression_are_named(copied):
    path = copied / "llm/tokenizer.json"
    values = json.loads(path.read_text())
    path.unlink()
    split = {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    for broken in ({}, [], values | {"model": None}, values | {"pre_tokenizer": split}):
        path.write_text(json.dumps(broken))
        with pytest.raises(CheckpointError):
            load(copied, **HOW)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["llm", "tower", "connector"])
def test_weights_that_are_not_finite_are_counted_and_refused(copied, tmp_path, part, value):
    found = []

    def spoil(tensors):
        name = sorted(name for name in tensors if tensors[name].numel() > 3)[0]
        tensors[name].view(-1)[:3] = value
        found.append(name)

    _changed(copied / part / "model.safetensors", spoil)
    for use in (lambda: load(copied, **HOW), lambda: to(copied, tmp_path / "no", "llava")):
        with pytest.raises(CheckpointError, match=r"3 weights of 1 tensors are not finite") as caught:
            use()
        assert f"{found[0].removeprefix('vision_model.')} (3)" in str(caught.value)
    assert not (tmp_path / "no").exists()


def test_numbers_too_large_for_fp16_do_not_become_infinite(copied, tmp_path):
    _changed(copied / "connector/model.safetensors", lambda tensors: next(iter(tensors.values())).fill_(1e6))
    to(copied, tmp_path / "wide", "llava", dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"not finite(.|\n)*--dtype bf16"):
        to(copied, tmp_path / "narrow", "llava", dtype=torch.float16)


@pytest.mark.parametrize("part", ["llm", "tower"])
@pytest.mark.parametrize("more", [True, False])
def test_a_surplus_or_a_missing_tensor_is_refused_by_all_alike(copied, tmp_path, part, more):
    def change(tensors):
        if more:
            tensors["of_another_model.weight"] = torch.zeros(2)
        else:
            tensors.pop(sorted(name for name in tensors if "layers.0" in name)[0])

    _changed(copied / part / "model.safetensors", change)
    for use in (lambda: load(copied, **HOW), lambda: to(copied, tmp_path / "no", "llava")):
        with pytest.raises(CheckpointError, match="is unknown" if more else "missing"):
            use()


def test_what_a_folder_says_of_itself_chooses_no_format_that_takes_trust(tmp_path, monkeypatch):
    class Trusting:
        def detect(self, folder):
            return (folder / "like-this").is_file()

    monkeypatch.setattr(registry, "FORMATS", dict(registry.FORMATS))
    monkeypatch.setattr(registry, "_ASKED", set())
    registry.register("trusting", Trusting(), asked=True)
    (tmp_path / "like-this").touch()
    with pytest.raises(CheckpointError, match="--from trusting"):
        registry.detect(tmp_path)
    (tmp_path / "like-this").unlink()
    (tmp_path / "vlmrun.json").write_text('{"format": "trusting"}')
    with pytest.raises(CheckpointError, match="--from trusting"):
        registry.find(tmp_path)


@pytest.mark.parametrize("format", ["llava", "hf_llava", "hf", "mm_projector", "megatron", "native", "bnb4"])
def test_convert_counts_what_it_wrote(model, tmp_path, format):
    summary = to(model, tmp_path / "made", format)
    assert summary["tensors"] == written_tensors(tmp_path / "made") > 0
