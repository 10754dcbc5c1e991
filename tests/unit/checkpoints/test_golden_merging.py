"""Our arithmetic against recordings of the original scripts (golden g7_merging)."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmrun.checkpoints.adapter import CONFIG, WEIGHTS, Adapter
from vlmrun.checkpoints.average import mean
from vlmrun.checkpoints.tensors import Reader
from vlmrun.errors import CheckpointError

GOLDEN = Path(os.environ.get("VLMRUN_GOLDEN", Path(__file__).resolve().parents[4] / "shared/golden")) / "g7_merging"


@pytest.fixture(scope="module", autouse=True)
def _golden():
    if not GOLDEN.is_dir():
        message = f"golden data is missing: {GOLDEN} (set VLMRUN_GOLDEN)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


def _group(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("number", range(5))
def test_merging_agrees_with_peft(tmp_path, number):
    case = json.loads((GOLDEN / "cases.json").read_text())["lora_cases"][number]
    tensors = load_file(GOLDEN / "lora_merge_cases.safetensors")
    base, merged = (_group(tensors, f"{case['id']}/{kind}/") for kind in ("base", "merged"))
    save_file(_group(tensors, f"{case['id']}/adapter/"), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"r": case["r"], "lora_alpha": case["lora_alpha"]}))
    adapter = Adapter(tmp_path)
    # PEFT rounds a 16-bit delta before adding it, we round the sum once: one unit in the last place apart at most.
    tolerance = {"float32": 1e-6, "float16": 2**-10, "bfloat16": 2**-7}[case["dtype"]]
    changed = set()
    for name, weight in base.items():
        delta = adapter.delta(name, tuple(weight.shape))
        if delta is not None:
            changed.add(name)
            found = (weight.float() + delta).to(weight.dtype)
            assert torch.allclose(found.float(), merged[name].float(), rtol=tolerance, atol=tolerance), name
    if "lm_head" in case["target_modules"]:
        # PEFT stores a copy of the head it adapted; a tensor nobody uses is refused, never dropped in silence.
        with pytest.raises(CheckpointError, match=r"1 adapter tensors match(.|\n)*lm_head\.base_layer"):
            adapter.check_all_used()
    else:
        adapter.check_all_used()
    assert changed == set(case["changed"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_averaging_agrees_with_the_definition_to_the_bit(dtype):
    folder = GOLDEN / f"average_{dtype}"
    expected = load_file(folder / "mean_by_definition.safetensors")
    readers = [Reader(folder / name) for name in ("first", "second")]
    assert len(readers[0].files()) != len(readers[1].files()), "other shard borders"
    found = {name: value for name, value, _ in mean(readers, [0.5, 0.5])}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
