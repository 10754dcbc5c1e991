"""Our arithmetic against recordings of the original scripts (golden g7_merging)."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.golden import CASES, asset, need
from vlmrun.config.schema import Linear
from vlmrun.merging import methods
from vlmrun.merging.methods.blocks import Piece, Source
from vlmrun.weights.adapter import CONFIG, WEIGHTS, Adapter, fold
from vlmrun.weights.reader import Reader

GOLDEN = CASES / "g7_merging"


@pytest.fixture(scope="module", autouse=True)
def _golden():
    need(GOLDEN)


def _group(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _cases(name):
    file = GOLDEN / "cases.json"
    return json.loads(file.read_text()).get(name, []) if file.is_file() else []


@pytest.mark.parametrize("case", _cases("lora_cases"), ids=lambda case: case["id"])
def test_merging_agrees_with_peft(tmp_path, case):
    tensors = load_file(GOLDEN / "lora_merge_cases.safetensors")
    base, merged = (_group(tensors, f"{case['id']}/{kind}/") for kind in ("base", "merged"))
    save_file(_group(tensors, f"{case['id']}/adapter/"), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"r": case["r"], "lora_alpha": case["lora_alpha"]}))
    adapter = Adapter(tmp_path)
    assert adapter.problems({name: tuple(weight.shape) for name, weight in base.items()}) == []
    # PEFT rounds a 16-bit delta before adding it, we round the sum once: one unit in the last place apart at most.
    tolerance = {"float32": 1e-6, "float16": 2**-10, "bfloat16": 2**-7}[case["dtype"]]
    changed = set()
    for name, weight in base.items():
        if adapter.touches(name):
            changed.add(name)
            found = fold(name, weight.view(len(weight), -1), 0, [(adapter, 1.0)]).to(weight.dtype).view_as(weight)
            assert torch.allclose(found.float(), merged[name].float(), rtol=tolerance, atol=tolerance), name
            if case["dtype"] == "float16":
                exact = fold(name, weight, 0, [(adapter, 1.0)], "fp16")
                assert torch.equal(exact, merged[name]), f"{name}: PEFT's own arithmetic, on request"
    assert changed == set(case["changed"])


@pytest.mark.parametrize("arithmetic", ["fp16", "fp32"])
def test_the_original_merge_script_gives_the_same_llm(tmp_path, arithmetic):
    """Upstream loads, adds and saves in fp16: equal to the bit on request; rounding once is a unit apart."""
    script = _cases("lora_script")
    expected = load_file(need(GOLDEN / "lora_merge_script_output_fp16.safetensors"))
    base = Reader(asset(script["base"]))
    save_file(load_file(GOLDEN / "lora_adapter_model.safetensors"), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(script["adapter_config"]))
    adapter = Adapter(tmp_path)
    assert adapter.problems({name: base.shape(name) for name in base.names()}) == []
    merged = differ = 0
    for name in base.names():
        weight = base.get(name)
        used = [(adapter, 1.0)] if adapter.touches(name) else []
        merged += len(used)
        found = fold(name, weight.view(len(weight), -1), 0, used, arithmetic).half().view_as(weight)
        if arithmetic == "fp16":
            assert torch.equal(found, expected[name]), name
        differ += not torch.equal(found, expected[name])
        assert torch.allclose(found.float(), expected[name].float(), rtol=2**-10, atol=2**-12), name
    assert merged
    assert bool(differ) == (arithmetic == "fp32"), "the two arithmetics can be told apart"


def test_the_connector_saved_beside_an_adapter_is_found_in_the_merged_model():
    """What is trained in full beside the adapter goes into the merged model unchanged but for its type."""
    rest = load_file(need(GOLDEN / "lora_non_lora_trainables.safetensors"))
    expected = load_file(GOLDEN / "lora_merge_script_output_fp16.safetensors")
    compared = 0
    for name, value in rest.items():
        bare = name.removeprefix("base_model.").removeprefix("model.")
        if bare in expected:
            compared += 1
            assert torch.equal(value.half(), expected[bare].half()), name
    assert compared


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("average_*")), ids=lambda folder: folder.name)
def test_averaging_agrees_with_the_definition_to_the_bit(folder):
    expected = load_file(folder / "mean_by_definition.safetensors")
    readers = [Reader(folder / name) for name in ("first", "second")]
    assert len(readers[0].files()) != len(readers[1].files()), "other shard borders"
    found = {}
    for name in readers[0].names():
        source = Source(name, readers[0].shape(name), _look(readers, name), step=7)
        (dtype,) = {reader.dtype(name) for reader in readers}
        made = methods.combine(source, [0.5, 0.5], Linear(name="linear", sum="one"))
        found[name] = torch.cat([piece.to(dtype) for piece in made]).view(source.shape)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def _look(readers, name):
    return lambda start, stop: Piece([reader.flat(name, start, stop) for reader in readers])
