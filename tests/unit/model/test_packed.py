"""Weights that lie in 4 bits in their folder: trained on as they are, refused where they cannot be."""

import pytest
import torch

from tests.pico import NF4, TOWER, WIDE, pico_llm, pico_loaded, pico_model_config
from vlmrun.checks import quantized, table
from vlmrun.config.compose import compose
from vlmrun.config.schema import Lora, Tune
from vlmrun.config.validate import validate
from vlmrun.errors import CheckpointError
from vlmrun.model import quantize, tune

LORA = Lora(r=4, alpha=8.0, dropout=0.0, targets="all-linear", bias="none", modules_to_save=["embed_tokens"])


def _pack(model_class, source, target, skip):
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16, llm_int8_skip_modules=skip,
    )  # fmt: skip
    model = model_class.from_pretrained(source, quantization_config=how, dtype=torch.float32)
    model.save_pretrained(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`full/llm`, and `four/llm` with the same in 4 bits; a tower in 4 bits, its output projections left alone."""
    import shutil

    from transformers import AutoModelForCausalLM, SiglipVisionConfig, SiglipVisionModel

    place = tmp_path_factory.mktemp("packed")
    pico_llm(place / "full/llm", **WIDE)
    pico_model_config(place / "full", tower="siglip")
    shutil.copytree(place / "full", place / "four")
    _pack(AutoModelForCausalLM, place / "full/llm", place / "four/llm", ["lm_head"])
    tower = SiglipVisionModel(SiglipVisionConfig(**TOWER | {"hidden_size": 64, "intermediate_size": 64}))
    tower.save_pretrained(place / "wide")
    _pack(SiglipVisionModel, place / "wide", place / "four/tower", ["out_proj"])
    return place


def test_an_llm_in_4_bits_computes_as_one_packed_at_load(folder):
    at_load = pico_loaded(folder / "full", tower="siglip", quantized=NF4)
    lying = pico_loaded(folder / "four", tower="siglip", quantized=NF4)
    ids = torch.tensor([[0, 7, 9, 10, 12]])
    embedded = at_load.vlm.llm.get_input_embeddings()(ids)
    with torch.no_grad():
        both = [each.vlm.llm(inputs_embeds=embedded).logits for each in (at_load, lying)]
    assert torch.equal(*both)


def test_adapters_learn_on_it_and_the_tower_in_4_bits_stays(folder):
    loaded = pico_loaded(folder / "four", tower="siglip", quantized=NF4)
    assert any(parameter.dtype == torch.uint8 for parameter in loaded.vlm.tower.parameters())
    assert loaded.vlm.tower.dtype == torch.float32
    tune.apply(loaded.vlm, Tune(llm="qlora", tower="freeze", connector="full"), LORA)
    vlm = loaded.vlm.train()
    ids = torch.tensor([[0, *[-200] * vlm.image_tokens(None), 9, 10]])
    pixels = torch.randn(1, 3, vlm.image_size, vlm.image_size)
    vlm(ids, torch.ones_like(ids), pixels, ids.masked_fill(ids < 0, -100)).loss.backward()
    moved = {name for name, p in vlm.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("lora_B" in name for name in moved)
    assert "llm.base_model.model.model.embed_tokens.weight" in moved
    assert not [name for name in moved if name.startswith("tower")]


@pytest.mark.parametrize(("quant", "words"), [(None, "quantized already"), (NF4 | {"double": False}, "held otherwise")])
def test_what_does_not_fit_is_refused(folder, quant, words):
    with pytest.raises(CheckpointError, match=words):
        pico_loaded(folder / "four", tower="siglip", quantized=quant)


def test_an_adapter_on_packed_files_is_not_merged_into_them(folder):
    with pytest.raises(CheckpointError, match="quantized in its folder"):
        quantize.layers(folder / "four/llm", NF4)


def _problems(folder, *overrides):
    parts = [f"model.{part}.path={folder / 'four' / part}" for part in ("llm", "tower")]
    base = ["+recipe=minicpm_v25_qlora", *parts]
    names = ("minicpm", "minicpm_eval")
    unset = [f"data.{name}.{key}=x" for name in names for key in ("annotations", "images")]
    run, problems = validate(compose([*base, *unset, *overrides]).tree)
    assert not problems
    return [(problem.where, problem.what) for problem in table.problems(quantized.RULES, run)]


def test_check_says_why_before_anything_is_loaded(folder):
    assert _problems(folder) == []
    ((where, what),) = _problems(folder, "stage.qlora.tune.tower=full")
    assert where == "stage.qlora.tune.tower"
    assert "are quantized" in what
    ((where, _),) = _problems(folder, "stage.qlora.quant.double=false")
    assert where == "stage.qlora.quant"
    ((where, what),) = _problems(folder, "stage.qlora.tune.llm=full", "stage.qlora.lora=null", "stage.qlora.quant=null")
    assert (where, "only adapters" in what) == ("stage.qlora.tune.llm", True)
