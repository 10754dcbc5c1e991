"""What LoRA adapts and what each mode trains, against the recordings of the original trainers (golden g6)."""

import gzip
import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity import golden
from tests.pico import pico_vlm
from vlmrun.arch import families
from vlmrun.config.schema import Lora, Tune
from vlmrun.model import tune
from vlmrun.model.connectors.mlp import MLP

CASES = golden.CASES / "g6_optim"
# Upstream's names for the parts inside the one model, in the LLM's own prefix or the adapter library's.
CONNECTOR, TOWER = "mm_projector.", "vision_tower."
FAMILIES = {"phi": "phi", "qwen": "qwen2", "llama": "llama", "minicpm": "granite", "mistral": "mistral"}


def _cases():
    found = []
    for file in sorted(CASES.glob("param_groups_*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines]
    return [case for case in found if case["llm"] in FAMILIES]


def test_the_reference_data_are_there():
    golden.need(CASES)
    assert _cases() or golden.IS_PART


def _llm(case):
    """A random LLM of the case's family and depth; names are what is compared."""
    names = [name for name, _ in case["all_params"]]
    depth = 1 + max(
        int(name.split("layers.")[1].split(".")[0]) for name in names if "layers." in name and "vision" not in name
    )
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    config = AutoConfig.for_model(FAMILIES[case["llm"]], **sizes, num_key_value_heads=4, pad_token_id=None)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case["id"])
def test_lora_finds_the_layers_upstream_finds(case):
    assert tune.lora_targets(_llm(case), "all-linear") == sorted(case["find_all_linear_names"])


def _tuning(mode):
    mode = mode.removesuffix("_projlr")
    llm = "lora" if mode == "lora" else "freeze" if mode == "adapter_only" else "full"
    return Tune(
        llm=llm,
        tower="full" if mode == "unfreeze_tower" else "freeze",
        connector="freeze" if mode == "freeze_adapter" else "full",
    )


def _of_llm(names):
    return {name for name in names if CONNECTOR not in name and TOWER not in name}


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case["id"])
def test_each_mode_trains_what_upstream_trains(case):
    vlm = pico_vlm()
    vlm.llm, vlm.connector = _llm(case), MLP(vlm.tower.hidden_dim, 32)
    rank = 4 if case["mode"].startswith("lora") else None
    lora = Lora(r=rank, alpha=8.0, dropout=0.0, targets="all-linear", bias="none", modules_to_save=[]) if rank else None
    tuning = _tuning(case["mode"])
    tune.apply(vlm, tuning, lora)
    ours = {name for name, p in vlm.named_parameters() if p.requires_grad}
    theirs = set(case["trainable"])
    llm = {name.removeprefix("llm.") for name in ours if name.startswith("llm.")}
    # Bunny's own Phi class leaves out the bias of the output head that Phi's files have; a tied head has no name.
    assert llm - _of_llm(theirs) <= {"lm_head.weight", "lm_head.bias"}
    assert _of_llm(theirs) - llm <= {"lm_head.weight"}
    assert any(name.startswith("connector.") for name in ours) == any(CONNECTOR in name for name in theirs)
    assert any(name.startswith("tower.") for name in ours) == any(TOWER in name for name in theirs)


def test_minicpm_is_held_as_granite_with_the_same_names():
    assert families.having("held_as") == ["minicpm"]
    case = next((case for case in _cases() if case["llm"] == "minicpm"), None)
    if case is None:
        pytest.skip("no case of this family")
    theirs = _of_llm(name for name, _ in case["all_params"])
    ours = {name for name, _ in _llm(case).named_parameters()}
    assert {name.removeprefix("base_model.model.") for name in theirs} - ours <= {"lm_head.weight"}
    assert ours - theirs <= {"lm_head.weight"}, "tied in the recording"
