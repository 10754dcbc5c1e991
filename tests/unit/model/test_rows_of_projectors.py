"""Embeddings of added tokens beside a projector: written with it, read from it, refused where they have no place."""

import pytest
import torch

from tests.pico import pico_model_config, pico_vlm
from tests.unit.formats.conftest import saved, to
from vlmrun.config.schema import Lora, ModelConfig, Tune
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.model import tune
from vlmrun.model.named_modules import prove_trained
from vlmrun.model.new_tokens import ids_of
from vlmrun.model.parts import assemble

HOW = {"dtype": torch.float32, "attention": "sdpa", "seed": 0}
MARKERS = ["<im_start>", "<im_end>"]


def _config(folder, *, weights=None, markers=MARKERS):
    values = pico_model_config(folder / "pico").model_dump(by_alias=True) | {"image_markers": markers}
    values["connector"] |= {} if weights is None else {"weights": str(weights)}
    return ModelConfig.model_validate(values)


@pytest.fixture
def trained(tmp_path):
    """A model whose added rows were trained, and its projector's file."""
    loaded = assemble(_config(tmp_path), **HOW)
    embedding = loaded.vlm.llm.get_input_embeddings().weight
    rows = torch.randn(2, embedding.shape[1])
    with torch.no_grad():
        embedding[ids_of(loaded.tokenizer, MARKERS)] = rows
    summary = to(saved(tmp_path / "weights", loaded), tmp_path / "out", "mm_projector")
    assert any("rows of the 2 tokens" in note for note in summary["notes"])
    return rows, tmp_path / "out/mm_projector.bin"


def test_they_go_along_and_come_back(trained, tmp_path):
    rows, file = trained
    assert torch.equal(torch.load(file, weights_only=True)["model.embed_tokens.weight"], rows)
    loaded = assemble(_config(tmp_path, weights=file), **HOW)
    ids = ids_of(loaded.tokenizer, MARKERS)
    assert torch.equal(loaded.vlm.llm.get_input_embeddings().weight[ids], rows)
    assert loaded.sources["llm"] is None, "saved as it is now, not linked as it was"


def test_a_whole_embedding_as_upstream_writes_it_is_read_too(trained, tmp_path):
    rows, file = trained
    held = torch.load(file, weights_only=True)
    before = assemble(_config(tmp_path), **HOW)
    whole = before.vlm.llm.get_input_embeddings().weight.detach().clone()
    whole[ids_of(before.tokenizer, MARKERS)] = rows
    torch.save(held | {"model.embed_tokens.weight": whole}, file)
    after = assemble(_config(tmp_path, weights=file), **HOW)
    assert torch.equal(after.vlm.llm.get_input_embeddings().weight, whole)


@pytest.mark.parametrize("markers", [None, [*MARKERS, "<more>"]])
def test_a_model_that_adds_others_refuses_them(trained, tmp_path, markers):
    _, file = trained
    config = _config(tmp_path, weights=file)
    config = config.model_copy(update={"image_markers": None, "new_tokens": markers or []})
    with pytest.raises(CheckpointError, match=r"embeddings of added tokens(.|\n)*model\.image_markers"):
        assemble(config, **HOW)


def test_a_base_without_the_tokens_refuses_them(trained, tmp_path):
    _, file = trained
    with pytest.raises(CheckpointError, match=r"have no place there(.|\n)*model\.connector\.weights"):
        to(file.parent, tmp_path / "no", "native", base=tmp_path / "pico/llm", tower=tmp_path / "pico/tower")


def test_a_file_of_more_than_a_connector_is_refused(trained, tmp_path):
    _, file = trained
    torch.save(torch.load(file, weights_only=True) | {"model.layers.0.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"more than a connector: model\.layers\.0\.weight"):
        assemble(_config(tmp_path, weights=file), **HOW)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_either_name_of_a_tied_matrix_is_refused(name):
    vlm = pico_vlm()
    vlm.llm.lm_head.weight = vlm.llm.get_input_embeddings().weight
    lora = Lora(r=2, alpha=2.0, dropout=0.0, targets="all-linear", bias="none", modules_to_save=[name])
    with pytest.raises(ConfigError, match=f"'{name}' shares its weights"):
        tune.apply(vlm, Tune(llm="lora", tower="freeze", connector="freeze"), lora)


def test_what_would_not_train_is_named():
    vlm = pico_vlm()
    lora = Lora(r=2, alpha=2.0, dropout=0.0, targets=["q_proj"], bias="none", modules_to_save=["lm_head"])
    tune.apply(vlm, Tune(llm="lora", tower="freeze", connector="freeze"), lora)
    vlm.llm.get_output_embeddings().requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing of 'lm_head' would be trained"):
        prove_trained(vlm.llm, lora, "here")
    with pytest.raises(ConfigError, match="no layer of 'v_proj' would be trained"):
        prove_trained(vlm.llm, lora.model_copy(update={"targets": ["v_proj"], "modules_to_save": []}), "here")
