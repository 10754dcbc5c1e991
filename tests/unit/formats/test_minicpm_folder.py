"""MiniCPM-V's published layout, there and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico_minicpm
from vlmrun.config.schema import Target
from vlmrun.errors import CheckpointError
from vlmrun.formats import convert, minicpm, table
from vlmrun.formats.base import How
from vlmrun.formats.load import describe, load
from vlmrun.model.parts import assemble

VLM_KEYS = {
    "architectures": ["MiniCPMV"],
    "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"},
    "batch_vision_input": True,
    "drop_vision_last_layer": False,
    "image_size": 32,
    "model_type": "minicpmv",
    "patch_size": 8,
    "query_num": 4,
    "slice_config": {"max_slice_nums": 4, "patch_size": 8, "model_type": "minicpmv"},
    "slice_mode": True,
}
VISION = {key: value for key, value in pico_minicpm.TOWER.items() if key not in ("model_type", "vision_use_head")}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as openbmb publishes one, made from a pico model, and that model."""
    place = tmp_path_factory.mktemp("published")
    model = pico_minicpm.model(place / "parts", resolution=448)
    target = Target.model_validate({"_target_": minicpm.RESAMPLER, "queries": 4, "heads": None})
    made = assemble(model.model_copy(update={"connector": target}), dtype=torch.float32, attention="sdpa", seed=0)
    folder = place / "folder"
    folder.mkdir()
    names = {"llm.": "llm.", "tower.model.": "vpm.", "connector.": "resampler."}
    tensors = {}
    for name, value in made.vlm.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        tensors[names[ours] + name.removeprefix(ours)] = value.clone()
    save_file(tensors | {"resampler.pos_embed": torch.zeros(2, 2, 32)}, folder / "model.safetensors")
    text = json.loads((place / "parts/llm/config.json").read_text())
    values = {key: value for key, value in text.items() if key != "model_type"} | VLM_KEYS
    (folder / "config.json").write_text(json.dumps(values | {"vision_config": VISION | {"model_type": "idefics2"}}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((place / "parts/llm" / name).read_bytes())
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said |= {
        "tokenizer_class": "MiniCPMVTokenizerFast",
        "auto_map": {"AutoTokenizer": ["x.MiniCPMVTokenizerFast", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "modeling_minicpmv.py").write_text("raise SystemExit('never run')")
    return folder, made


def _logits(vlm):
    ids = torch.tensor([[0, 7, *[-200] * vlm.image_tokens(None), 9, 10]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return vlm(ids, torch.ones_like(ids), pixels).logits


def test_it_loads_as_parts_without_its_code(published, tmp_path):
    folder, made = published
    assert table.detect(folder) == "minicpm"
    convert.convert(folder, tmp_path / "native", "native", How())
    loaded = load(tmp_path / "native", dtype=torch.float32, attention="sdpa")
    tower = loaded.vlm.tower
    assert (tower.positions, tower.sees_padding) == ("strip", True)
    assert describe(tmp_path / "native")["image_aspect"] == "slices"
    assert (loaded.model.tiles.max_slices, loaded.model.tiles.marks) == (4, "nested")
    tower.positions = "grid"  # as the model that was written out computes
    assert torch.equal(_logits(loaded.vlm), _logits(made.vlm))
    assert loaded.tokenizer.convert_tokens_to_ids("<slice>") == made.tokenizer.convert_tokens_to_ids("<slice>")


def test_written_again_it_is_what_was_published(published, tmp_path):
    folder, _ = published
    convert.convert(folder, tmp_path / "native", "native", How())
    convert.convert(tmp_path / "native", tmp_path / "again", "minicpm", How())
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "again", folder))
    del theirs["resampler.pos_embed"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    written = json.loads((tmp_path / "again/config.json").read_text())
    expected = VLM_KEYS | {"slice_config": VLM_KEYS["slice_config"] | {"scale_resolution": 448}}
    assert {key: written[key] for key in expected if key != "auto_map"} == {
        key: value for key, value in expected.items() if key != "auto_map"
    }
    assert "auto_map" not in written
    assert json.loads((tmp_path / "again/preprocessor_config.json").read_text())["version"] == 2.5


def test_26_differs_in_llm_template_tower_and_marks(published, tmp_path):
    folder, _ = published
    values = json.loads((folder / "config.json").read_text()) | {"version": 2.6}
    described = minicpm._described(folder, values).description["model"]
    assert (described["template"], described["tower"]["positions"]) == ("minicpm_v26", "grid")
    assert (described["tiles"]["marks"], described["tiles"]["image_ids"]) == ("flat", "always")


@pytest.mark.parametrize(
    ("change", "words"), [({"scale_emb": 12}, "2.0's tower"), ({"version": 4.5}, "4.5 is not known")]
)
def test_other_versions_are_refused(published, tmp_path, change, words):
    folder, _ = published
    values = json.loads((folder / "config.json").read_text()) | change
    with pytest.raises(CheckpointError, match=words):
        minicpm._described(folder, values)


def test_what_it_has_no_place_for_is_named(published, tmp_path):
    folder, _ = published
    model, _ = convert.read(folder, How())
    model.description["model"]["tiles"] = None
    model.description["model"]["connector"] = {"_target_": "vlmrun.model.connectors.mlp.MLP", "depth": 2}
    found = [problem.what for problem in minicpm.refuse(model, How())]
    assert found == ["MiniCPM-V knows no connector MLP", "MiniCPM-V's images are cut into marked slices"]
