"""Saving a model and loading it from its folder alone."""

import errno
import json
import shutil

import pytest
import torch

from tests.pico import LLAMA, TOWER, pico_loaded, pico_model_config
from tests.unit.models import TEMPLATE, add_lora, logits, save
from vlmrun.config.schema import ModelConfig
from vlmrun.errors import CheckpointError
from vlmrun.formats.load import describe, load
from vlmrun.model.parts import assemble
from vlmrun.model.tune import adapter_config
from vlmrun.weights import folder, native
from vlmrun.weights.reader import Reader

HOW = {"dtype": torch.float32, "attention": "sdpa"}


def _same(first, second):
    ours, theirs = dict(first.vlm.named_parameters()), dict(second.vlm.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("changed", [(), ("connector",), ("llm", "connector"), ("llm", "tower", "connector")])
def test_a_saved_model_comes_back_to_the_bit(tmp_path, tower, changed):
    first = pico_loaded(tmp_path / "pico", tower=tower)
    save(tmp_path / "stage", first, *changed)
    shutil.rmtree(tmp_path / "pico")
    second = load(tmp_path / "stage", **HOW)
    _same(first, second)
    assert torch.equal(logits(first), logits(second))
    assert second.template == TEMPLATE
    assert second.preprocessor == first.preprocessor
    assert second.tokenizer("<|user|>What?<|end|>").input_ids == first.tokenizer("<|user|>What?<|end|>").input_ids
    assert not second.vlm.training
    _same(second, load(tmp_path / "stage" / "weights", **HOW))


def test_a_saved_folder_can_be_moved(tmp_path, loaded):
    save(tmp_path / "stage", loaded, "connector")
    (tmp_path / "stage").rename(tmp_path / "elsewhere")
    _same(loaded, load(tmp_path / "elsewhere", **HOW))
    description = (tmp_path / "elsewhere" / "weights" / "model.json").read_text()
    assert str(tmp_path) not in description


def test_a_model_made_from_configs_saves_whole(tmp_path):
    config = pico_model_config(tmp_path / "pico").model_dump(by_alias=True)
    llm = {"config": {"model_type": "llama", **LLAMA}, "tokenizer": str(tmp_path / "pico" / "llm")}
    config["llm"] = {"_target_": config["llm"]["_target_"], **llm}
    config["tower"] = {"_target_": config["tower"]["_target_"], "config": TOWER, "layers": [-1]}
    first = assemble(ModelConfig.model_validate(config), seed=0, **HOW)
    save(tmp_path / "stage", first)
    shutil.rmtree(tmp_path / "pico")
    second = load(tmp_path / "stage", **HOW)
    _same(first, second)
    assert second.model.tower.arguments == {"path": str(tmp_path / "stage/weights/tower"), "layers": [-1]}
    assert second.preprocessor == first.preprocessor


def test_an_adapter_comes_back_to_the_bit_wrapped_or_merged(tmp_path, loaded):
    plain = logits(loaded)
    add_lora(loaded, r=3, alpha=5.0, targets=["q_proj", "down_proj"])
    save(tmp_path / "stage", loaded, "connector", adapter=True)
    second = load(tmp_path / "stage", **HOW)
    _same(loaded, second)
    assert torch.equal(logits(loaded), logits(second))
    assert not torch.allclose(logits(second), plain, atol=1e-3)
    assert not any(p.requires_grad for p in second.vlm.llm.parameters())
    assert adapter_config(second.vlm.llm) == adapter_config(loaded.vlm.llm)
    merged = load(tmp_path / "stage", merge_adapter=True, **HOW)
    assert not hasattr(merged.vlm.llm, "peft_config")
    assert torch.allclose(logits(merged), logits(second), atol=1e-5)


def test_peft_itself_reads_the_adapter(tmp_path, loaded):
    from peft import PeftModel

    from vlmrun.model.llm import load as load_llm

    add_lora(loaded)
    save(tmp_path / "stage", loaded, adapter=True)
    weights = tmp_path / "stage" / "weights"
    llm = load_llm(str(weights / "llm"), **HOW).model
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        theirs = PeftModel.from_pretrained(llm, weights / "adapter")
    ids = torch.tensor([[0, 5, 6]])
    assert torch.equal(theirs(ids).logits, loaded.vlm.llm(ids).logits)


def test_a_frozen_adapter_goes_along(tmp_path, loaded):
    add_lora(loaded)
    save(tmp_path / "first", loaded, adapter=True)
    second = load(tmp_path / "first", **HOW)
    save(tmp_path / "second", second, "connector")
    _same(loaded, load(tmp_path / "second", **HOW))


def test_unchanged_parts_are_links_between_artifacts_and_copies_from_elsewhere(tmp_path, loaded):
    save(tmp_path / "first", loaded, "connector")
    for name in ("llm/model.safetensors", "tower/model.safetensors"):
        part, _, file = name.partition("/")
        outside = tmp_path / "pico" / part / file
        assert (tmp_path / "first/weights" / name).stat().st_ino != outside.stat().st_ino
        assert (tmp_path / "first/weights" / name).read_bytes() == outside.read_bytes()
    second = load(tmp_path / "first", **HOW)
    save(tmp_path / "second", second, "connector")
    linked = {
        file.relative_to(tmp_path / "second/weights").as_posix()
        for file in (tmp_path / "second/weights").rglob("*")
        if file.is_file() and file.stat().st_nlink > 1
    }
    assert {"llm/model.safetensors", "tower/model.safetensors", "llm/tokenizer.json", "tower/config.json"} <= linked
    assert "connector/model.safetensors" not in linked


def test_links_that_cannot_be_made_become_copies(tmp_path, loaded, monkeypatch):
    save(tmp_path / "first", loaded)

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(folder.os, "link", refuse)
    save(tmp_path / "second", load(tmp_path / "first", **HOW))
    _same(loaded, load(tmp_path / "second", **HOW))


def test_bin_weights_become_safetensors(tmp_path):
    config = pico_model_config(tmp_path / "pico")
    weights = tmp_path / "pico/llm/model.safetensors"
    reader = Reader(weights.parent)
    torch.save({name: reader.get(name) for name in reader.names()}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    first = assemble(config, seed=0, **HOW)
    save(tmp_path / "stage", first)
    assert not list((tmp_path / "stage").rglob("*.bin"))
    _same(first, load(tmp_path / "stage", **HOW))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_description_says_what_is_inside(tmp_path, dtype):
    save(tmp_path / "stage", pico_loaded(tmp_path / "pico", dtype=dtype), "llm")
    description = describe(tmp_path / "stage")
    assert description["format"] == "vlmrun-1"
    assert description["dtype"] == {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    assert description["adapter"] is None
    assert description["image_aspect"] == "square"
    assert description["model"]["llm"] == {"_target_": "vlmrun.model.llm.load", "path": "llm"}
    assert description["model"]["tower"]["path"] == "tower"
    reader = Reader(tmp_path / "stage/weights/llm")
    assert {reader.dtype(name) for name in reader.names()} == {dtype}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tmp_path, tied):
    from tests.pico import pico_llm

    pico_llm(tmp_path / "pico" / "llm", tie_word_embeddings=tied)
    first = pico_loaded(tmp_path / "pico")
    save(tmp_path / "stage", first, "llm")
    second = load(tmp_path / "stage", **HOW)
    _same(first, second)
    assert (second.vlm.llm.lm_head.weight is second.vlm.llm.model.embed_tokens.weight) == tied


def test_a_failure_while_saving_leaves_what_was_there_before(tmp_path, loaded):
    save(tmp_path / "stage", loaded, "connector")
    before = {file: file.read_bytes() for file in (tmp_path / "stage").rglob("*") if file.is_file()}

    def torn():
        yield next(loaded.vlm.connector.named_parameters())
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        native.save(tmp_path / "stage/weights", loaded, template={}, image_aspect="pad", tensors={"connector": torn()})
    assert {file: file.read_bytes() for file in (tmp_path / "stage").rglob("*") if file.is_file()} == before


def test_tensors_that_are_missing_or_not_whole_are_a_bug(tmp_path, loaded):
    named = list(loaded.vlm.connector.named_parameters())
    for given, message in (
        (named[:-1], "were not written"),
        (named[1:], "announced"),
        ([(named[0][0], named[0][1][:4])], "has shape"),
    ):
        with pytest.raises(AssertionError, match=message):
            native.save(tmp_path / "w", loaded, template={}, image_aspect="pad", tensors={"connector": iter(given)})
    assert not (tmp_path / "w").exists()


def test_names_of_the_whole_model_do_as_well(tmp_path, loaded):
    given = [(name, p) for name, p in loaded.vlm.named_parameters() if name.startswith("tower.")]
    native.save(tmp_path / "w", loaded, template={}, image_aspect="pad", tensors={"tower": iter(given)})
    _same(loaded, load(tmp_path / "w", **HOW))


def test_folders_that_are_not_whole_are_checkpoint_errors(tmp_path, loaded):
    good = save(tmp_path / "good", loaded, "connector") / "weights"
    with pytest.raises(CheckpointError, match="there is no model here"):
        load(tmp_path, **HOW)
    description = json.loads((good / "model.json").read_text())
    escaped = description | {"model": description["model"] | {"llm": {**description["model"]["llm"], "path": "../.."}}}
    evil = description | {"model": description["model"] | {"connector": {"_target_": "os.system", "command": "true"}}}
    for number, (text, message) in enumerate(
        (
            ("{", "is not JSON"),
            (json.dumps(description | {"format": "other-9"}), "unknown format 'other-9'"),
            (json.dumps(description | {"model": {}}), "the description cannot be read"),
            (json.dumps(escaped), "points outside its folder"),
        )
    ):
        bad = shutil.copytree(good, tmp_path / f"bad{number}")
        (bad / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load(bad, **HOW)
    from vlmrun.errors import ConfigError

    (good / "model.json").write_text(json.dumps(evil))
    with pytest.raises(ConfigError, match=r"'os\.system' is not allowed"):
        load(good, **HOW)


def test_a_connector_or_adapter_of_another_shape_is_told(tmp_path, loaded):
    add_lora(loaded)
    good = save(tmp_path / "good", loaded, "connector", adapter=True) / "weights"
    from safetensors.torch import load_file, save_file

    def spoil(name):
        bad = shutil.copytree(good, tmp_path / name.partition("/")[0])
        tensors = load_file(bad / name)
        first = sorted(tensors)[0]
        save_file(tensors | {first: torch.zeros(2, 2)}, bad / name)
        return bad

    with pytest.raises(CheckpointError, match=r"connector's weights do not fit: layers.0.bias is \(2, 2\)"):
        load(spoil("connector/model.safetensors"), **HOW)
    with pytest.raises(CheckpointError, match="adapter does not fit the LLM"):
        load(spoil("adapter/adapter_model.safetensors"), **HOW)
