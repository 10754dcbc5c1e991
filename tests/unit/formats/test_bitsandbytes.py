"""Few bits: read without bitsandbytes to what it computes with, and written as transformers reads it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from tests.pico import WIDE, pico_llm, pico_loaded
from tests.unit.formats.conftest import differences, saved, to
from vlmrun.errors import CheckpointError
from vlmrun.formats import bitsandbytes
from vlmrun.formats.base import write_tensors
from vlmrun.weights.lazy import made
from vlmrun.weights.reader import Reader

pytest.importorskip("bitsandbytes")


def _folder(folder, weight, n_bits, dtype):
    write_tensors(folder, bitsandbytes.pack("layer.weight", made(weight), n_bits).items())
    (folder / "config.json").write_text(json.dumps({"dtype": str(dtype).removeprefix("torch.")}))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 128), (3, 64), (300, 192)])
def test_four_bits_are_read_to_what_bitsandbytes_computes_with(tmp_path, dtype, shape):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    lazy = bitsandbytes.tensors_of(_folder(tmp_path, weight, 4, dtype))["layer.weight"]
    assert (lazy.shape, lazy.dtype) == (shape, dtype)
    theirs = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
    assert torch.equal(lazy.load(), theirs)
    assert all(torch.equal(lazy.rows(n, n + 1), theirs[n : n + 1]) for n in range(len(weight))), "in any slices"
    error = (theirs.float() - weight.float()).norm() / weight.float().norm()
    assert 0.05 < error < 0.15


def test_simple_scales_and_the_other_kind_of_four_bits_are_read_as_well(tmp_path):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    codes, state = quantize_4bit(weight, quant_type="fp4", compress_statistics=False)
    tensors = {"layer.weight": codes} | {f"layer.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(bitsandbytes.tensors_of(tmp_path)["layer.weight"].load(), dequantize_4bit(codes, state))


def test_eight_bits_have_a_scale_a_row(tmp_path):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    found = bitsandbytes.tensors_of(_folder(tmp_path, weight, 8, torch.float32))
    assert sorted(found) == ["layer.weight"]
    assert (found["layer.weight"].load() - weight).abs().max() < weight.abs().max() / 127
    assert found["layer.weight"].dtype == torch.float32


@pytest.mark.parametrize("n_bits", [4, 8])
def test_transformers_loads_what_is_written_and_computes_the_same(tmp_path, n_bits):
    from transformers import LlavaForConditionalGeneration

    pico_llm(tmp_path / "pico/llm", **WIDE)
    ours = saved(tmp_path / "ours", pico_loaded(tmp_path / "pico"))
    to(ours, tmp_path / "packed", f"bnb{n_bits}")
    packed = LlavaForConditionalGeneration.from_pretrained(tmp_path / "packed")
    kinds = {type(layer).__name__ for layer in packed.model.language_model.layers.modules()}
    assert ("Linear4bit" if n_bits == 4 else "Linear8bitLt") in kinds
    assert type(packed.lm_head).__name__ == "Linear"
    assert "Linear4bit" not in {type(layer).__name__ for layer in packed.model.vision_tower.modules()}
    to(tmp_path / "packed", tmp_path / "plain", "native")
    assert all(": values differ" in what for what in differences(ours, tmp_path / "plain"))
    assert len(differences(ours, tmp_path / "plain")) == 14, "seven layers in each of two blocks"
    to(tmp_path / "plain", tmp_path / "hf", "hf_llava", prove=True)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    ids = torch.tensor([[0, 5, 6, 7]])
    # With gradients: without, bitsandbytes takes a bf16 kernel on a CPU that has one (model/quantize.py).
    apart = (packed(ids).logits - plain(ids).logits).abs().max()
    assert apart < (1e-4 if n_bits == 4 else 0.3), "8 bits also round what goes into a layer"


def test_layers_to_skip_are_named_by_any_part_of_their_name(tmp_path):
    pico_llm(tmp_path / "llm", **WIDE)
    to(tmp_path / "llm", tmp_path / "packed", "bnb4", skip=("o_proj", "layers.1", "lm_head"))
    names = Reader(tmp_path / "packed").names()
    packed = {name.partition(".quant_state")[0] for name in names if "quant_state" in name}
    assert packed == {
        f"model.layers.0.{name}.weight"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj",
                     "mlp.down_proj")
    }  # fmt: skip
    config = json.loads((tmp_path / "packed/config.json").read_text())["quantization_config"]
    assert config["load_in_4bit"]
    assert config["bnb_4bit_quant_type"] == "nf4"
    assert "model.layers.0.self_attn.o_proj" in config["llm_int8_skip_modules"]
    with pytest.raises(CheckpointError, match="no layer is left"):
        to(tmp_path / "llm", tmp_path / "none", "bnb4", skip=("layers", "lm_head"))


@pytest.mark.parametrize("n_bits", [4, 8])
def test_threads_that_want_parts_of_one_weight_pack_it_once(monkeypatch, n_bits):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    alone = {name: part.load() for name, part in bitsandbytes.pack("layer.weight", made(weight), n_bits).items()}
    real, packed = getattr(bitsandbytes, f"_packed_{n_bits}"), []
    monkeypatch.setattr(bitsandbytes, f"_packed_{n_bits}", lambda *given: packed.append(given) or real(*given))
    parts = bitsandbytes.pack("layer.weight", made(weight), n_bits)
    together = threading.Barrier(len(parts))

    def load(part):
        together.wait(timeout=60)
        return part.load()

    with ThreadPoolExecutor(len(parts)) as pool:
        found = dict(zip(parts, pool.map(load, parts.values()), strict=True))
    assert len(packed) == 1
    assert all(torch.equal(found[name], value) for name, value in alone.items())
