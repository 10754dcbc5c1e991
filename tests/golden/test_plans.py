"""Plans of published recipes, kept as files: a changed formula shows up as numbers to be looked at.

After a wanted change: VLMRUN_UPDATE_GOLDEN=1 pytest tests/golden, then read `git diff tests/golden`.
tests/unit/plan computes the main terms of llava15_7b by hand.
"""

import json
import os
from pathlib import Path

import pytest

from vlmrun.cli import plan, train
from vlmrun.plan import run as planning
from vlmrun.plan import time
from vlmrun.plan.time import Rates

HERE = Path(__file__).parent / "plans"
RECIPES = ["llava15_7b", "bunny_llama3_recipe1", "denseconnector_dci_7b_v100", "smoke"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_plan_is_the_one_kept(name, monkeypatch, tmp_path):
    for variable in ("VLMRUN_OUTPUT", "VLMRUN_ASSETS", "VLMRUN_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)  # where no data lies
    told = planning.Options(Rates(time.MFU, time.PRICE))
    found = plan.to_dict(planning.plan(train.compose([f"+recipe={name}"], []), told), told)
    text = json.dumps(found, indent=1) + "\n"
    file = HERE / f"{name}.json"
    if os.environ.get("VLMRUN_UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.is_file(), "no golden file: see the head of this test"
    assert text == file.read_text()


def _fitting(name, stage, *overrides):
    told = planning.Options(Rates(time.MFU, time.PRICE))
    found = planning.plan(train.compose([f"+recipe={name}", f"only=[{stage}]", *overrides], []), told)
    return found.stages[0].fitting or 0


def test_what_is_known_to_fit_does_and_what_is_known_not_to_does_not():
    """7B: whole on eight A100 of 40 GB with ZeRO-3 and checkpointing, not on one V100; adapters on one A100."""
    one = "hardware.ranks_per_node=1"
    assert _fitting("llava15_7b", "instruct", "hardware=a100_40g") >= 8
    assert _fitting("llava15_7b", "instruct", "hardware=a100_40g", "stage.instruct.gradient_checkpointing=false") <= 1
    assert _fitting("llava15_7b", "instruct", "hardware=v100_fp16", one) == 0
    assert 4 <= _fitting("llava15_7b_lora", "lora", "hardware=a100_40g", one) <= 8
    assert 4 <= _fitting("llava_v1_7b_qlora", "qlora", "hardware=rtx_consumer", one) <= 8
    assert _fitting("llava15_7b", "pretrain", "hardware=rtx_consumer", one) > 0


def test_published_recipes_fit_where_they_were_trained():
    """LLaVA-1.5 and Bunny on eight A100 of 80 GB, as their READMEs say."""
    told = planning.Options(Rates(time.MFU, time.PRICE))
    for name in ("llava15_7b", "llava15_13b", "llava15_7b_lora", "bunny_llama3_recipe1", "bunny_phi2_siglip"):
        found = planning.plan(train.compose([f"+recipe={name}"], []), told)
        assert all(one.fits for one in found.stages if hasattr(one, "fits")), name
