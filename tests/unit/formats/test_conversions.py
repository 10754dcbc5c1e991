"""Whatever way a model takes through the formats, it comes back to the bit."""

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.pico import pico_llm, pico_loaded, pico_model_config, pico_tower
from tests.unit.formats.conftest import differences, saved, to
from tests.unit.models import add_lora
from vlmrun.config.schema import Format, ModelConfig
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.formats import table
from vlmrun.formats.base import How, WrittenFormat
from vlmrun.formats.convert import convert
from vlmrun.model.parts import assemble

WHOLE = ("native", "hf_llava", "llava", "kollava", "bunny", "megatron")


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory, model):
    """The model in every format that holds all of it."""
    folder = tmp_path_factory.mktemp("everywhere")
    for name in WHOLE:
        to(model, folder / name, name, tp=2 if name == "megatron" else 1)
    return folder


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(WHOLE, 2)))
def test_from_any_format_to_any_other(tmp_path, everywhere, model, first, second):
    to(everywhere / first, tmp_path / "made", second)
    assert table.detect(tmp_path / "made") == second
    assert differences(model, tmp_path / "made") == []


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_tensor_comes_back_as_well(tmp_path, everywhere, model, name):
    to(everywhere / name, tmp_path / "back", "native")
    for file in ("model.json", "llm/config.json", "tower/config.json", "tower/preprocessor_config.json"):
        assert json.loads((tmp_path / "back" / file).read_text()) == json.loads((model / file).read_text()), file
    tokenizers = [json.loads((each / "llm/tokenizer.json").read_text()) for each in (model, tmp_path / "back")]
    assert tokenizers[0] == tokenizers[1]


PICO = st.fixed_dictionaries(
    {
        "tower": st.sampled_from(["clip", "siglip"]),
        "layers": st.sampled_from([[-2], [-1], [1]]),
        "depth": st.sampled_from([1, 2, 3]),
        "feature": st.sampled_from(["patch", "cls_patch"]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "tied": st.booleans(),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "spare_rows": st.sampled_from([0, 1, 7]),
        "way": st.lists(st.sampled_from(WHOLE), min_size=1, max_size=2),
        "tp": st.sampled_from([1, 2, 4]),
    }
)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PICO)
def test_a_random_model_on_a_random_way(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("way")
    place = saved(folder / "0", _random(folder, case))
    refused = ""
    for number, name in enumerate(case["way"], start=1):
        try:
            to(place, folder / str(number), name, tp=case["tp"] if name == "megatron" else 1)
        except CheckpointError as error:
            refused = str(error)
            break
        place = folder / str(number)
    assert differences(folder / "0", place) == [], case
    if refused:  # a format says what it cannot express before it writes anything
        assert "knows no" in refused or "cannot be cut" in refused, refused
        assert not (folder / str(number)).exists()
        return
    to(place, folder / "back", "native")
    assert differences(folder / "0", folder / "back") == [], case


def _random(folder, case):
    rows = 320 + case["spare_rows"]
    pico_llm(
        folder / "pico/llm", num_key_value_heads=case["kv_heads"], vocab_size=rows, tie_word_embeddings=case["tied"]
    )
    pico_tower(folder / "pico/tower", case["tower"], num_attention_heads=4)
    values = pico_model_config(folder / "pico", tower=case["tower"], depth=case["depth"]).model_dump(by_alias=True)
    values["tower"]["layers"] = case["layers"]
    if case["tower"] == "clip":
        values["tower"]["feature"] = case["feature"]
    return assemble(ModelConfig.model_validate(values), dtype=case["dtype"], attention="sdpa", seed=0)


def test_dense_connectors_scales_and_tiles_have_a_place_in_their_own_projects_only(tmp_path):
    dense = pico_model_config(tmp_path / "pico").model_dump(by_alias=True)
    dense["tower"]["layers"] = None
    dense["connector"] = {"_target_": "vlmrun.model.connectors.dense.Dense", "kind": "dci", "depth": 2}
    loaded = assemble(ModelConfig.model_validate(dense), dtype=torch.float32, attention="sdpa", seed=0)
    saved(tmp_path / "dense", loaded)
    to(tmp_path / "dense", tmp_path / "theirs", "denseconnector")
    assert table.detect(tmp_path / "theirs") == "denseconnector"
    to(tmp_path / "theirs", tmp_path / "back", "native")
    assert differences(tmp_path / "dense", tmp_path / "back") == []
    for name in ("hf_llava", "llava", "bunny", "megatron"):
        with pytest.raises(CheckpointError, match="knows no"):
            to(tmp_path / "dense", tmp_path / name, name)
        assert not (tmp_path / name).exists()
    wide = pico_model_config(tmp_path / "pico").model_dump(by_alias=True)
    wide["tower"]["scales"] = [1, 2]
    saved(tmp_path / "s2", assemble(ModelConfig.model_validate(wide), dtype=torch.float32, attention="sdpa", seed=0))
    with pytest.raises(CheckpointError, match=r"scales \[1, 2\] \(S2\)"):
        to(tmp_path / "s2", tmp_path / "no", "hf_llava")
    tiled = pico_model_config(tmp_path / "pico").model_dump(by_alias=True)
    tiled["tiles"] = {"grids": [[16, 32], [32, 16]], "merge": "spatial_unpad"}
    loaded = assemble(ModelConfig.model_validate(tiled), dtype=torch.float32, attention="sdpa", seed=0)
    saved(tmp_path / "tiled", loaded, aspect="anyres")
    to(tmp_path / "tiled", tmp_path / "tiled_llava", "llava")
    (tmp_path / "tiled_llava/vlmrun.json").unlink()
    to(tmp_path / "tiled_llava", tmp_path / "tiled_back", "native")
    assert differences(tmp_path / "tiled", tmp_path / "tiled_back") == []
    assert json.loads((tmp_path / "tiled_back/model.json").read_text())["model"]["tiles"] == tiled["tiles"]
    with pytest.raises(CheckpointError, match="anyres"):
        to(tmp_path / "tiled", tmp_path / "no", "hf_llava")


@pytest.mark.parametrize("name", ["llava", "hf_llava", "kollava", "bunny"])
def test_a_folder_that_somebody_else_wrote_is_read_from_its_own_configuration(tmp_path, everywhere, model, name):
    shutil.copytree(everywhere / name, tmp_path / "theirs")
    (tmp_path / "theirs/vlmrun.json").unlink()
    assert table.detect(tmp_path / "theirs") == name
    summary = to(tmp_path / "theirs", tmp_path / "back", "native")
    assumed = "bunny_llama" if name == "bunny" else "vicuna_v1"
    assert f"{assumed} is assumed" in summary["notes"][0]
    changed = [] if name != "hf_llava" else ["llm.lm_head.weight", "llm.model.embed_tokens.weight"]
    assert [what.partition(":")[0] for what in differences(model, tmp_path / "back")] == changed, "the row of <image>"
    made = json.loads((tmp_path / "back/model.json").read_text())["model"]
    assert made["tower"]["layers"] == [-2]
    assert made["connector"]["depth"] == 2
    to(tmp_path / "theirs", tmp_path / "asked", "native", template="plain")
    assert json.loads((tmp_path / "asked/model.json").read_text())["template"]["name"] == "plain"


def test_a_connector_an_adapter_and_a_peft_folder_need_what_they_belong_to(tmp_path, model):
    loaded = pico_loaded(tmp_path / "pico")
    add_lora(loaded)
    lora = saved(tmp_path / "lora", loaded)
    for name in ("llava", "peft", "mm_projector"):
        to(lora, tmp_path / name, name)
        with pytest.raises(CheckpointError, match=r"give --base|give --tower|fetch"):
            to(tmp_path / name, tmp_path / "no", "native")
    names = {path.name for path in (tmp_path / "llava").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin", "config.json"} <= names
    beside = torch.load(tmp_path / "llava/non_lora_trainables.bin", weights_only=True)
    assert "base_model.model.model.mm_projector.0.weight" in beside
    for name in ("llava", "peft"):
        to(tmp_path / name, tmp_path / f"{name}_back", "native", base=model)
        assert differences(lora, tmp_path / f"{name}_back") == []
        assert json.loads((tmp_path / f"{name}_back/model.json").read_text())["adapter"] == "adapter"
    projector = torch.load(tmp_path / "mm_projector/mm_projector.bin", weights_only=True)
    assert sorted(projector) == [f"model.mm_projector.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")]
    to(tmp_path / "mm_projector", tmp_path / "connected", "native", base=model, tower=model / "tower")
    assert differences(model, tmp_path / "connected") == []
    with pytest.raises(CheckpointError, match="adapter that is not merged"):
        to(lora, tmp_path / "no", "hf_llava")


def test_missing_unknown_and_misshapen_tensors_are_all_listed(tmp_path, everywhere):
    shutil.copytree(everywhere / "llava", tmp_path / "llava")
    (tmp_path / "llava/vlmrun.json").unlink()
    path = tmp_path / "llava/model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        to(tmp_path / "llava", tmp_path / "no", "native")
    said = str(caught.value)
    assert "llm.model.layers.0.mlp.up_proj.weight is missing" in said
    assert "llm.model.layers.7.mlp.up_proj.weight is unknown" in said
    assert "llm.model.norm.weight is [5], its configuration says [32]" in said
    assert not (tmp_path / "no").exists()
    tensors["vision_resampler.weight"] = torch.zeros(2)
    shutil.copytree(everywhere / "hf_llava", tmp_path / "hf")
    (tmp_path / "hf/vlmrun.json").unlink()
    held = load_file(tmp_path / "hf/model.safetensors")
    save_file(held | {"vision_resampler.weight": torch.zeros(2)}, tmp_path / "hf/model.safetensors")
    with pytest.raises(CheckpointError, match="unknown tensor vision_resampler"):
        to(tmp_path / "hf", tmp_path / "no", "native")


def test_check_names_every_tensor_that_differs(tmp_path, model):
    shutil.copytree(model, tmp_path / "other")
    path = tmp_path / "other/llm/model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, path)
    assert differences(model, tmp_path / "other") == ["llm.model.norm.weight: values differ by up to 0.001"]
    to(model, tmp_path / "half", "native", dtype=torch.bfloat16)
    found = differences(model, tmp_path / "half")
    assert len(found) == 64
    assert "llm.model.norm.weight: torch.bfloat16, expected torch.float32" in found
    assert json.loads((tmp_path / "half/model.json").read_text())["dtype"] == "bf16"
    assert json.loads((tmp_path / "half/llm/config.json").read_text())["dtype"] == "bfloat16"


def test_a_destination_that_is_there_is_left_alone(tmp_path, model):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("precious")
    with pytest.raises(CheckpointError, match="the destination is there already"):
        to(model, tmp_path / "there", "hf_llava")
    with pytest.raises(CheckpointError, match="is in the source"):
        to(model, model / "inside", "hf_llava")
    with pytest.raises(ConfigError, match="did you mean 'hf_llava'"):
        to(model, tmp_path / "no", "hf_lava")
    with pytest.raises(CheckpointError, match="no model in a format known here"):
        to(tmp_path / "there", tmp_path / "no", "native")
    assert (tmp_path / "there/mine").read_text() == "precious"


def test_every_file_is_on_the_disk_before_the_folder_has_its_name(tmp_path, model, monkeypatch):
    synced, named = set(), {}
    fsync, replace = os.fsync, Path.replace

    def noted(fd):
        synced.add(os.fstat(fd).st_ino)
        fsync(fd)

    def checked(self, target):
        if Path(target) == tmp_path / "made":
            named.update({path.name: path.stat().st_ino in synced for path in (self, *self.rglob("*"))})
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", checked)
    to(model, tmp_path / "made", "llava")
    assert {"tokenizer.json", "config.json", "vision_tower_clip", "model.safetensors"} <= named.keys()
    assert all(named.values()), named


def test_a_format_that_was_mistaken_can_be_named(tmp_path, everywhere, model):
    with pytest.raises(
        CheckpointError, match="cannot be read as hf: ValueError Unrecognized model identifier: llava_llama"
    ):
        convert(everywhere / "llava", tmp_path / "no", "native", How(), came_as="hf")
    convert(everywhere / "llava", tmp_path / "yes", "native", How(), came_as="kollava")
    assert differences(model, tmp_path / "yes") == []


def test_the_schema_names_every_format_that_is_written():
    written = {name for name, format in table.FORMATS.items() if isinstance(format, WrittenFormat)}
    assert set(get_args(Format)) == written
