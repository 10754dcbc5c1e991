"""Every preset of `hardware=` is what the guide's table says, and sound on its GPU."""

import re

import pytest

from tests.conftest import ROOT
from vlmrun.checks import hardware, table
from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.schema import RunConfig
from vlmrun.config.validate import validate
from vlmrun.hardware.gpus import GPUS

ROWS = {
    row[1]: [cell.strip() for cell in row[2].split("|")]
    for row in re.finditer(r"^\| `(\w+)`[^|]*\|(.*)\|$", (ROOT / "docs/guides/hardware.md").read_text(), re.MULTILINE)
    if (conf_dir() / "hardware" / f"{row[1]}.yaml").is_file()
}
NAMES = {"none": "cpu", "A100 80 GB": "a100_80g", "A100 40 GB": "a100_40g", "H100 80 GB": "h100_80g",
         "V100 32 GB": "v100_32g", "RTX 3090": "rtx3090"}  # fmt: skip


def preset(name):
    config, problems = validate(compose(["+recipe=smoke", f"hardware={name}"]).tree)
    assert config is not None, problems
    return config.hardware


def test_the_guide_names_them_all():
    assert {path.stem for path in (conf_dir() / "hardware").glob("[!_]*.yaml")} == {*ROWS} == {
        "cpu", "a100_bf16", "a100_40g", "h100_bf16", "v100_fp16", "rtx_consumer",
    }  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_is_as_the_guide_says_and_runs_on_its_gpu(name, monkeypatch):
    gpus, precision, attention, tf32, besides = ROWS[name]
    found = preset(name)
    count, _, model = gpus.rpartition(" x ")
    assert (found.gpu, found.nodes * found.ranks_per_node) == (NAMES[model], int(count or 1))
    assert (found.precision, found.attention, found.tf32) == (precision, attention, tf32 == "yes")
    assert found.tf32 == GPUS[found.gpu].tf32
    shut = {"NCCL_P2P_DISABLE": 1, "NCCL_IB_DISABLE": 1}
    assert found.env == (shut if "NCCL without P2P and InfiniBand" in besides else {})
    assert (found.launcher == "inline") == ("one process" in besides)
    monkeypatch.setattr("vlmrun.arch.attention.find_spec", lambda _name: True)
    run = RunConfig.model_construct(hardware=found, only=[], stage={}, tracking=[])
    assert table.problems(hardware.RULES, run) == []
