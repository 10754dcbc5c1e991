"""Adapters exported for plain peft: on the model they are for they give our logits, and come back as they were."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pico import pico_loaded
from tests.unit.formats.conftest import differences, saved, to
from tests.unit.models import add_lora
from vlmrun.errors import CheckpointError
from vlmrun.formats import peft


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    loaded = pico_loaded(folder / "pico")
    add_lora(loaded)
    return saved(folder / "weights", loaded)


@pytest.mark.parametrize("fits", ["hf_llava", "llm", None])
def test_it_is_proven_and_comes_back(adapted, tmp_path, fits):
    summary = to(adapted, tmp_path / "out", "peft", fits=fits, prove=True)
    assert summary["proof"]["logits_apart"] < 1e-3
    assert any("the vision tower stays behind" in note for note in summary["notes"])
    whole = fits != "llm"
    names = load_file(tmp_path / "out/adapter_model.safetensors")
    assert any(".multi_modal_projector." in name for name in names) == whole
    assert (tmp_path / "out/connector/model.safetensors").is_file() != whole
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert all(name.startswith("model.language_model.") for name in config["target_modules"]) == whole
    to(adapted, tmp_path / "base", "native", adapter=False)
    to(tmp_path / "out", tmp_path / "back", "native", base=tmp_path / "base")
    assert differences(adapted, tmp_path / "back") == []


def test_of_another_program_it_comes_back_by_its_names(adapted, tmp_path):
    """Without what vlmrun writes beside it."""
    to(adapted, tmp_path / "out", "peft", fits="hf_llava")
    (tmp_path / "out/vlmrun.json").unlink()
    to(adapted, tmp_path / "base", "native", adapter=False)
    to(tmp_path / "out", tmp_path / "back", "native", base=tmp_path / "base")
    assert differences(adapted, tmp_path / "back") == []


def test_the_connector_that_was_trained_with_it_is_brought(adapted, tmp_path):
    to(adapted, tmp_path / "base", "native", adapter=False)
    file = tmp_path / "base/connector/model.safetensors"
    save_file({name: value * 0 for name, value in load_file(file).items()}, file, {"format": "pt"})
    for fits in ("hf_llava", "llm"):
        to(adapted, tmp_path / fits, "peft", fits=fits)
        to(tmp_path / fits, tmp_path / f"{fits}-back", "native", base=tmp_path / "base")
        assert differences(adapted, tmp_path / f"{fits}-back") == []


def test_a_proof_can_fail(adapted, tmp_path, monkeypatch):
    """As exports once were: of names within the LLM, which are on the tower of the whole model too."""
    monkeypatch.setattr(peft, "layers_of", lambda names: ["q_proj", "v_proj"])
    with pytest.raises(CheckpointError, match="plain peft fills other layers"):
        to(adapted, tmp_path / "out", "peft", fits="hf_llava", prove=True)
    assert not (tmp_path / "out").exists()


def test_without_its_adapter_a_model_is_what_it_was(adapted, tmp_path):
    to(adapted, tmp_path / "base", "native", adapter=False)
    assert not (tmp_path / "base/adapter").exists()
    names = [folder / "connector/model.safetensors" for folder in (adapted, tmp_path / "base")]
    first, second = (load_file(name)["layers.0.weight"] for name in names)
    assert torch.equal(first, second)
