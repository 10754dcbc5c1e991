"""LoRA merging: exact, streamed, nothing lost."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.unit.models import logits, merging
from vlmrun.errors import CheckpointError
from vlmrun.formats.load import describe, load
from vlmrun.merging.merge import merge
from vlmrun.weights.adapter import CONFIG, WEIGHTS, Adapter, fold
from vlmrun.weights.reader import Reader

HOW = {"dtype": torch.float32, "attention": "sdpa"}


def _adapter(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "bias": "none", **config}))
    return Adapter(folder)


@settings(max_examples=40, deadline=None)
@given(
    r=st.integers(1, 8),
    alpha=st.floats(0.25, 64),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    flags=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_delta_is_alpha_over_r_times_b_a_in_fp32(tmp_path_factory, r, alpha, shape, flags, dtype):
    rows, columns = shape
    rslora, transposed = flags
    generator = torch.Generator().manual_seed(r * 100 + rows * 10 + columns)
    down = torch.randn(r, columns, generator=generator).to(dtype)
    up = torch.randn(rows, r, generator=generator).to(dtype)
    stem = "base_model.model.model.layers.0.q_proj"
    adapter = _adapter(
        tmp_path_factory.mktemp("adapter"),
        {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up},
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        fan_in_fan_out=transposed,
    )
    wanted = (up.double() @ down.double()) * alpha / (r**0.5 if rslora else r)
    wanted = wanted.T if transposed else wanted
    name = "model.layers.0.q_proj.weight"
    base = torch.randn(wanted.shape, generator=generator).to(dtype)
    found = fold(name, base, 0, [(adapter, 1.0)])
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), base.double() + wanted, atol=1e-4, rtol=1e-5)  # fp32: at most 8 products
    cut = len(base) // 2
    parts = [fold(name, rows, start, [(adapter, 1.0)]) for start, rows in ((0, base[:cut]), (cut, base[cut:]))]
    assert torch.allclose(torch.cat(parts), found, atol=1e-5), "rows do not depend on their neighbours"
    assert adapter.touches(name)
    assert not adapter.touches("model.layers.1.q_proj.weight")
    assert adapter.problems({name: tuple(wanted.shape)}) == []


@pytest.mark.parametrize("lora", [{}, {"r": 3, "alpha": 5.0, "targets": ["q_proj", "down_proj"]}])
def test_the_merged_model_answers_as_the_adapted_one(tmp_path, make, lora):
    source = make("lora", 3, "connector", adapter=True, **lora)
    told = []
    summary = merge(merging(), [source], tmp_path / "merged/weights", report=lambda *seen: told.append(seen))
    adapted, merged = load(source, **HOW), load(tmp_path / "merged", **HOW)
    assert not hasattr(merged.vlm.llm, "peft_config")
    assert torch.allclose(logits(adapted), logits(merged), atol=1e-5)
    base, names = Reader(source / "weights/llm"), Reader(tmp_path / "merged/weights/llm").names()
    assert base.names() == names
    changed = {n for n in names if not torch.equal(base.get(n), merged.vlm.llm.state_dict()[n])}
    assert summary == {"tensors": len(names), "merged": len(changed)}
    assert len(changed) == (4 if lora else 14)
    assert told[-1][:2] == (len(names), len(names))
    again = load(source, merge_adapter=True, **HOW)
    state = merged.vlm.llm.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.vlm.llm.state_dict().items())


def test_other_parts_are_linked_and_the_description_says_whole(tmp_path, make):
    source = make("lora", 3, "connector", adapter=True)
    merge(merging(), [source], tmp_path / "merged/weights")
    for name in ("tower/model.safetensors", "connector/model.safetensors", "llm/tokenizer.json", "llm/config.json"):
        assert (tmp_path / "merged/weights" / name).stat().st_ino == (source / "weights" / name).stat().st_ino
    assert not (tmp_path / "merged/weights/adapter").exists()
    assert describe(tmp_path / "merged") == describe(source) | {"adapter": None}


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_the_type_can_be_chosen(tmp_path, make, name, dtype):
    source = make("lora", 3, adapter=True)
    merge(merging(), [source], tmp_path / "keep/weights")
    merge(merging(dtype=name), [source], tmp_path / "cast/weights")
    kept, cast = Reader(tmp_path / "keep/weights/llm"), Reader(tmp_path / "cast/weights/llm")
    for tensor in kept.names():
        assert torch.equal(cast.get(tensor), kept.get(tensor).to(dtype)), "rounded once, after the sum"
    assert describe(tmp_path / "cast")["dtype"] == name
    config = json.loads((tmp_path / "cast/weights/llm/config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_a_model_without_adapter_is_refused(tmp_path, make):
    with pytest.raises(CheckpointError, match="no adapter to merge"):
        merge(merging(), [make("whole", 1, "llm")], tmp_path / "merged")


def test_adapter_tensors_that_find_no_weight_are_refused_and_nothing_is_left(tmp_path, make):
    source = make("lora", 3, adapter=True)
    file = source / "weights/adapter" / WEIGHTS
    tensors = load_file(file)
    file.unlink()
    lost = {n.replace("layers.0", "layers.7"): t.clone() for n, t in tensors.items() if "layers.0" in n}
    save_file(tensors | lost, file)
    with pytest.raises(CheckpointError, match=r"14 adapter tensors match no weight(.|\n)*layers.7"):
        merge(merging(), [source], tmp_path / "merged/weights")
    name = sorted(tensors)[0]
    save_file({n.replace("lora_A", "lora_Q") if n == name else n: t for n, t in tensors.items()}, file)
    with pytest.raises(CheckpointError) as caught:
        merge(merging(), [source], tmp_path / "merged/weights")
    whats = [problem.what for problem in caught.value.problems]
    assert [what.split(":")[0].split(" of ")[0] for what in whats] == [
        "1 adapter tensors match no weight",
        "half",
    ], "both sides of the damage at once"
    assert not (tmp_path / "merged").exists()


def test_adapters_of_other_shapes_and_kinds_are_refused(tmp_path):
    stem = "base_model.model.q_proj"
    pair = {f"{stem}.lora_A.weight": torch.ones(2, 3), f"{stem}.lora_B.weight": torch.ones(4, 2)}
    good = _adapter(tmp_path / "good", pair, r=2, lora_alpha=2)
    assert torch.equal(good.delta("q_proj.weight", torch.zeros(4, 3)), torch.full((4, 3), 2.0))
    (problem,) = good.problems({"q_proj.weight": (5, 3)})
    assert problem.what == "the adapter of 'q_proj.weight' does not fit: B [4, 2], A [2, 3], weight [5, 3]"
    for number, wrong in enumerate(({"layer_replication": [[0, 1]]}, {"lora_bias": True}, {"peft_type": "IA3"})):
        with pytest.raises(CheckpointError, match="cannot be used"):
            _adapter(tmp_path / str(number), pair, r=2, **{"lora_alpha": 2, **wrong})
    with pytest.raises(CheckpointError, match="no lora_alpha"):
        _adapter(tmp_path / "none", pair, r=2)


def test_half_a_pair_is_refused(tmp_path):
    stem = "base_model.model.q_proj"
    half = _adapter(tmp_path, {f"{stem}.lora_A.weight": torch.ones(2, 3)}, r=2, lora_alpha=2)
    (problem,) = half.problems({"q_proj.weight": (4, 3)})
    assert problem.what == "half of the adapter of 'q_proj.weight' is missing: B"
    with pytest.raises(CheckpointError, match="is missing: B"):
        half.delta("q_proj.weight", torch.zeros(4, 3))


def test_a_torn_source_is_told_and_leaves_nothing(tmp_path, make):
    source = make("lora", 3, adapter=True)
    copy = shutil.copytree(source, tmp_path / "copy")
    file = copy / "weights/llm/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        merge(merging(), [copy], tmp_path / "merged/weights")
    assert not (tmp_path / "merged").exists()


def test_one_adapter_serves_several_threads(tmp_path):
    """Each goes through a layer of its own, as the writer's do; all begin together and meet at every piece."""
    generator = torch.Generator().manual_seed(0)
    names, tensors = [f"model.layers.{number}.q_proj.weight" for number in range(8)], {}
    for name in names:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(2, 5, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(16, 2, generator=generator)
    adapter = _adapter(tmp_path / "adapter", tensors, r=2, lora_alpha=4)
    base, together = torch.randn(16, 5, generator=generator), threading.Barrier(len(names))

    def through(name, meet=together.wait):
        found = []
        for start in range(16):
            meet()
            found.append(fold(name, base[start : start + 1], start, [(adapter, 1.0)]))
        return torch.cat(found)

    with ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(through, names))
    for name, value in zip(names, found, strict=True):
        assert torch.equal(value, through(name, lambda: None))
