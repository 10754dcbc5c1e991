"""Every family that the tables know, on a tiny model made in-process: pretrain, LoRA, QLoRA, merge, convert, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.families import TINY, attention, make_llm
from tests.pico import IMAGE_SIZE, N_PATCHES, NF4, WIDE, pico_model_config, pico_tokenizer
from tests.unit.models import add_lora, logits, merging, save
from vlmrun.arch import counts, families
from vlmrun.config.schema import Lora, ModelConfig, Tune
from vlmrun.errors import ConfigError
from vlmrun.formats.base import How
from vlmrun.formats.convert import convert
from vlmrun.formats.load import load
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.merging.merge import merge
from vlmrun.model import tune
from vlmrun.model.parts import Loaded, assemble
from vlmrun.model.pretrained import quietly
from vlmrun.plan import run as planning
from vlmrun.train import audit

FAMILIES = sorted(set(families.FAMILIES) - {"minicpm"})  # minicpm is held as granite
DENSE = [name for name in FAMILIES if not families.find(name).experts]
BUFFERS = ("layer_scalar", "e_score_correction_bias")  # of Gemma 4 and DeepSeek: kept in files, and never trained
# Adapters of DeepSeek's other layers would be put on every expert.
TARGETS = {"deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]}
LORA = Lora(r=4, alpha=8.0, dropout=0.0, targets="all-linear", bias="none", modules_to_save=[])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")

    def of(family: str, **changes: Any) -> Path:
        folder = root / "-".join([family, *changes])
        if not folder.is_dir():
            pico_tokenizer(folder / "llm")
            with quietly():
                make_llm(family, **changes).save_pretrained(folder / "llm")
        return folder

    return of


def described(folder: Path) -> ModelConfig:
    return pico_model_config(folder)


def assembled(folder: Path, family: str, **how: Any) -> Loaded:
    return assemble(described(folder), dtype=torch.float32, attention=attention(family), seed=0, **how)


def plain(folder: Path, family: str) -> Any:
    from transformers import AutoModelForCausalLM

    with quietly():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention(family)).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, pixels and labels of two samples with an image each; no padding, whose rows are zeros in some families."""
    ids = torch.tensor(
        [[5, 7, *[IMAGE_TOKEN] * N_PATCHES, 9, 10, 11, 4], [5, *[IMAGE_TOKEN] * N_PATCHES, 8, 12, 13, 14, 4]]
    )
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    return ids, pixels, ids.masked_fill(ids == IMAGE_TOKEN, -100)


def test_every_row_has_a_tiny_model():
    assert set(FAMILIES) == set(TINY)


@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining_has_the_loss_of_plain_transformers_and_moves_the_connector_and_generates(family, folders):
    folder = folders(family)
    vlm = assembled(folder, family).vlm
    tune.apply(vlm, Tune(llm="freeze", tower="freeze", connector="full"), None)
    ids, pixels, labels = batch()
    out = vlm(ids, torch.ones_like(ids), pixels, labels)
    with torch.no_grad():
        embeds = vlm.embed(ids, pixels)
        truth = plain(folder / "llm", family)(inputs_embeds=embeds, labels=labels, use_cache=False).loss
    torch.testing.assert_close(out.loss, truth, rtol=1e-5, atol=1e-5)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vlm.connector.parameters())
    assert all(p.grad is None for p in vlm.llm.parameters())
    with torch.no_grad():
        for parameter in vlm.connector.parameters():
            parameter -= 1e-4 * parameter.grad
        after = vlm(ids[:1, :-1], torch.ones_like(ids[:1, :-1]), pixels[:1])
        assert vlm(ids, torch.ones_like(ids), pixels, labels).loss < out.loss
    made = vlm.generate(ids[:1, :-1], torch.ones_like(ids[:1, :-1]), pixels[:1], max_new_tokens=2, eos_ids=[4])
    assert made[0, 0] == after.logits[0, -1].argmax()


@pytest.mark.parametrize("family", DENSE)
def test_all_of_it_trains_and_is_saved(family, folders, tmp_path):
    loaded = assembled(folders(family), family)
    tune.apply(loaded.vlm, Tune(llm="full", tower="freeze", connector="full"), None)
    ids, pixels, labels = batch()
    before = loaded.vlm(ids, torch.ones_like(ids), pixels, labels).loss
    before.backward()
    assert [name for name, parameter in loaded.vlm.llm.named_parameters() if parameter.grad is None] == []
    norm = torch.nn.utils.clip_grad_norm_(loaded.vlm.llm.parameters(), 1e-2)  # a step small enough to go downhill
    assert norm > 0
    with torch.no_grad():
        for parameter in loaded.vlm.llm.parameters():
            parameter -= parameter.grad
    trained = logits(loaded)
    again = load(save(tmp_path / "full", loaded, "llm"), dtype=torch.float32, attention=attention(family))
    assert torch.equal(logits(again), trained)
    with torch.no_grad():
        assert loaded.vlm(ids, torch.ones_like(ids), pixels, labels).loss < before


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_merged_and_the_llm_is_read_by_plain_transformers(family, folders, tmp_path):
    loaded = assembled(folders(family), family)
    before = logits(loaded)
    add_lora(loaded, targets=TARGETS.get(family, "all-linear"))
    trained = logits(loaded)
    assert not torch.allclose(trained, before, atol=1e-2)
    merge(merging(), [save(tmp_path / "lora", loaded, adapter=True)], tmp_path / "merged")
    merged = load(tmp_path / "merged", dtype=torch.float32, attention=attention(family))
    torch.testing.assert_close(logits(merged), trained, rtol=1e-3, atol=1e-4)
    convert(tmp_path / "merged", tmp_path / "hf", "hf", How(), prove=False)
    ids, pixels, _ = batch()
    with torch.no_grad():
        embeds = merged.vlm.embed(ids, pixels)
        found = plain(tmp_path / "hf", family)(inputs_embeds=embeds, use_cache=False).logits
        assert torch.equal(found, merged.vlm(ids, torch.ones_like(ids), pixels).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_the_trainer_does_and_the_files_hold(family, folders):
    folder = folders(family)
    found, stood_in = planning.shapes(described(folder), exact=True)
    assert found is not None
    assert stood_in == []
    how = Tune(llm="lora", tower="freeze", connector="full")
    lora = LORA.model_copy(update={"targets": TARGETS.get(family, "all-linear")})
    vlm = assembled(folder, family).vlm
    tune.apply(vlm, how, lora)
    counted = {row.part: (row.n_parameters, row.n_trainable) for row in audit.count(vlm, how)}
    assert counts.counts(found, how, lora) == counted
    (file,) = (folder / "llm").glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        held = {name: tensors.get_tensor(name).numel() for name in tensors.keys()}  # noqa: SIM118 -- no mapping
    assert sum(n for name, n in held.items() if not name.endswith(BUFFERS)) == found.llm.n_parameters


@pytest.mark.parametrize("family", DENSE)
def test_adapters_learn_on_packed_weights(family, folders):
    pytest.importorskip("bitsandbytes")
    folder = folders(family, **WIDE, **({"head_dim": 16} if "head_dim" in TINY[family] else {}))
    vlm = assembled(folder, family, quantized=NF4).vlm
    tune.apply(vlm, Tune(llm="qlora", tower="freeze", connector="full"), LORA)
    ids, pixels, labels = batch()
    vlm(ids, torch.ones_like(ids), pixels, labels).loss.backward()
    grads = {name: p.grad for name, p in vlm.llm.named_parameters() if p.requires_grad}
    assert grads
    assert all("lora_" in name for name in grads)
    assert all(grad.abs().sum() > 0 for name, grad in grads.items() if "lora_B" in name)


def test_adapters_that_would_land_on_experts_are_refused(folders):
    with pytest.raises(
        ConfigError, match=r"(?s)every expert instead of the layers down_proj.*leave them out: \[kv_a_proj"
    ):
        add_lora(assembled(folders("deepseek_v3"), "deepseek_v3"))
