"""xformers as an attention of transformers, equal to eager.

xformers has no kernel for a CPU. Here its documented formula takes the kernel's place, on the masks that xformers' own
classes spell out, after its own checks of shapes, alignment and kinds of masks. Its GPU kernels are what is not tested.
"""

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from tests.pico import pico_vlm
from vlmrun.arch import families
from vlmrun.config.compose import conf_dir
from vlmrun.errors import ConfigError
from vlmrun.model import attention
from vlmrun.model.attention import packed_rows
from vlmrun.model.llm import load
from vlmrun.model.towers.clip import Clip
from vlmrun.model.towers.dinov2 import Dinov2
from vlmrun.model.towers.siglip import Siglip

pytest.importorskip("xformers")

FAMILIES = sorted(path.stem for path in (Path(conf_dir()) / "model/llm").glob("pico*.yaml") if "mpt" not in path.stem)
ABSENT = ("device=cpu", "operator wasn't built", "requires")


def documented(query, key, value, bias, dropout, scale):
    """`memory_efficient_attention` as its docstring has it, for what its CUTLASS kernel accepts."""
    from xformers.ops.fmha import cutlass
    from xformers.ops.fmha.common import Inputs

    inputs = Inputs(query, key, value, bias, dropout, scale)
    inputs.validate_inputs()
    for kernel in (cutlass.FwOp, cutlass.BwOp):
        reasons = [text for text in kernel.not_supported_reasons(inputs) if not text.startswith(ABSENT)]
        assert not reasons, (kernel.NAME, reasons)
    assert dropout == 0.0
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)).transpose(1, 2) @ key.permute(0, 2, 3, 1)
    if bias is not None:
        scores = scores + (bias if isinstance(bias, torch.Tensor) else bias.materialize(scores.shape))
    return (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2).contiguous()


@pytest.fixture(autouse=True)
def _formula(monkeypatch):
    attention.ready("xformers")
    monkeypatch.setattr(attention, "_kernel", documented)


def pair(name="pico_mistral", **changes):
    """The same random LLM twice: eager, xformers."""
    config = yaml.safe_load((Path(conf_dir()) / f"model/llm/{name}.yaml").read_text())["config"] | changes
    torch.manual_seed(0)
    made = [
        load(None, dict(config), "builtin:micro-llm", dtype=torch.float32, attention=kind).model
        for kind in ("eager", "xformers")
    ]
    for parameter in made[0].parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    made[1].load_state_dict(made[0].state_dict())
    return made


def ids_of(*lengths, width=None):
    rows = torch.zeros(len(lengths), width or max(lengths), dtype=torch.long)
    mask = torch.zeros_like(rows)
    for row, length in enumerate(lengths):
        rows[row, :length] = torch.randint(5, 400, (length,), generator=torch.Generator().manual_seed(length))
        mask[row, :length] = 1
    return rows, mask


@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_batch_and_its_gradients_are_those_of_eager(name):
    eager, ours = pair(name)
    assert ours.config._attn_implementation == "xformers"
    ids, mask = ids_of(9, 4, 1)
    for ends in ("right", "left"):
        if ends == "left":
            ids, mask = ids.flip(1), mask.flip(1)
        results = []
        for model in (eager, ours):
            model.zero_grad()
            logits = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
            logits.float().logsumexp(-1).sum().backward()
            results.append((logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(results[1][0], results[0][0], atol=2e-5, rtol=1e-4)
        for theirs, mine in zip(results[0][1], results[1][1], strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("way", ["position_ids", "packed_rows", "mask"])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_documents_and_their_gradients_are_those_of_each_alone(name, way):
    eager, ours = pair(name)
    lengths = [[5, 3, 4], [2, 7, 3]]
    documents = [[ids_of(length + 20 * row)[0][0, :length] for length in lengths[row]] for row in range(2)]
    ids = torch.stack([torch.cat(row) for row in documents])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    extra = {"position_ids": positions}
    if way == "packed_rows":
        extra |= packed_rows(positions)
    if way == "mask":
        belongs = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in lengths])
        allowed = (belongs[:, None, :, None] == belongs[:, None, None, :]) & torch.ones(12, 12).tril().bool()
        extra["attention_mask"] = torch.zeros(2, 1, 12, 12).masked_fill(~allowed, torch.finfo(torch.float32).min)
    packed = ours(ids, use_cache=False, **extra).logits.reshape(24, -1)
    alone = torch.cat([eager(document[None], use_cache=False).logits[0] for row in documents for document in row])
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)
    for logits in (packed, alone):
        logits.float().logsumexp(-1).sum().backward()
    for theirs, mine in zip(eager.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["eager", "sdpa", "xformers"])
def test_position_ids_alone_keep_packed_documents_apart(kind):
    eager, _ = pair("pico_qwen2")
    eager.set_attn_implementation(kind)
    ids, _ = ids_of(12)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    first = eager(ids, position_ids=positions, use_cache=False).logits
    other = eager(torch.cat([ids_of(5)[0], ids[:, 5:]], 1), position_ids=positions, use_cache=False).logits
    assert not torch.allclose(first[:, :5], other[:, :5])
    assert torch.equal(first[:, 5:], other[:, 5:])


def test_blocks_are_computed_without_a_mask(monkeypatch):
    seen = []
    monkeypatch.setattr(attention, "_kernel", lambda *given: seen.append(given) or documented(*given))
    _, ours = pair("pico_qwen2")
    ids, mask = ids_of(8, 8)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [*range(8)]])
    given = packed_rows(positions)
    assert given["cu_seq_lens_q"].tolist() == [0, 3, 8, 16]
    assert given["max_length_q"] == 8
    ours(ids, position_ids=positions, use_cache=False, **given)
    ours(ids, attention_mask=mask, use_cache=False)
    kinds = [type(given[3]).__name__ for given in seen]
    assert kinds == ["BlockDiagonalCausalMask"] * 2 + ["LowerTriangularMask"] * 2
    assert seen[0][0].shape == (1, 16, 4, 8)


def test_flash_attention_takes_the_same_blocks():
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    assert set(packed_rows(torch.tensor([[0, 1, 2, 0, 1]]))) <= set(
        inspect.signature(_flash_attention_forward).parameters
    )


def test_a_sliding_window_is_kept():
    eager, ours = pair("pico_mistral", sliding_window=3)
    ids, mask = ids_of(11, 7)
    kept = mask.bool()
    theirs = eager(ids, attention_mask=mask, use_cache=False).logits[kept]
    torch.testing.assert_close(
        ours(ids, attention_mask=mask, use_cache=False).logits[kept], theirs, atol=2e-5, rtol=1e-4
    )
    wide, _ = pair("pico_mistral", sliding_window=100)
    assert not torch.allclose(wide(ids, attention_mask=mask, use_cache=False).logits[kept], theirs, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_with_a_cache_and_padding_in_front_continues_as_eager_does(name):
    eager, ours = pair(name)
    ids, mask = (tensor.flip(1) for tensor in ids_of(6, 3))
    made = [
        model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
        for model in (eager, ours)
    ]
    assert torch.equal(*made)


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
         "patch_size": 8}  # fmt: skip


@pytest.mark.parametrize("kind", [Clip, Siglip, Dinov2])
def test_a_tower_gives_the_features_and_gradients_of_eager(kind):
    towers = [
        kind(config=dict(TOWER), layers=[-1], dtype=torch.float32, attention=how) for how in ("eager", "xformers")
    ]
    towers[1].load_state_dict(towers[0].state_dict())
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    found = []
    for tower in towers:
        (features,) = tower(pixels)
        features.square().sum().backward()
        found.append((features.detach(), [p.grad for p in tower.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-6, rtol=1e-5)
    for theirs, mine in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=1e-3)


def test_a_row_that_may_look_nowhere_gives_no_nan_in_half_precision():
    module = torch.nn.Module()
    query = torch.randn(1, 2, 5, 8).half()
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    for given in (mask, mask.new_full(mask.shape, False).float().fill_(torch.finfo(torch.float32).min)):
        result, _ = attention.attend(module, query, query, query, given)
        assert result.isfinite().all()


def test_what_xformers_cannot_compute_is_refused(monkeypatch):
    module, tensor = torch.nn.Module(), torch.randn(1, 2, 3, 8)
    with pytest.raises(ConfigError, match="xformers cannot compute attention with softcap"):
        attention.attend(module, tensor, tensor, tensor, None, softcap=50.0)
    monkeypatch.undo()
    with pytest.raises(
        ConfigError, match=r"(?s)no kernel for heads of 8 in float32 on a CPU: .*device=cpu.*attention=sdpa"
    ):
        attention.attend(module, tensor, tensor, tensor, None)


def test_a_family_without_the_attention_asked_for_is_refused_and_not_a_crash():
    config = {"model_type": "gemma2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(ConfigError, match=r"(?s)Gemma2ForCausalLM of transformers knows no.*hardware.attention=eager"):
        load(None, config, "builtin:micro-llm", dtype=torch.float32, attention="sdpa")


def test_a_missing_package_is_told_with_its_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xformers.ops", None)
    with pytest.raises(ConfigError, match=r"vlmrun-trainer\[gpu\]"):
        attention.ready("xformers")


def test_the_families_that_cannot_have_it_are_known():
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    for name, family in families.FAMILIES.items():
        if family.held_as is not None:
            continue
        model = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]
        known = {"eager", *(["sdpa", "xformers"] if model._supports_sdpa else [])}
        own_kernels = model._compatible_flash_implementations or ["flash_attention_2"]
        known |= {"flash_attention_2"} & set(own_kernels) if model._supports_flash_attn else set()
        assert set(family.attention or ()) == known, name
        assert family.own_attention == (not model._supports_sdpa), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_kernel_itself_is_equal_to_the_formula(monkeypatch, dtype):
    monkeypatch.undo()
    from xformers.ops import LowerTriangularMask

    given = [torch.randn(2, 37, 4, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = torch.ones(2, 1, 37, 37, device="cuda").tril().bool()
    for bias in (None, LowerTriangularMask(), attention._added(mask, given[0])):
        found = attention._kernel(*given, bias, 0.0, None)
        wanted = documented(*given, bias, 0.0, None)
        torch.testing.assert_close(found, wanted, atol=5e-3, rtol=1e-2)
        gradients = torch.autograd.grad(found.square().sum(), given)
        for mine, theirs in zip(gradients, torch.autograd.grad(wanted.square().sum(), given), strict=True):
            torch.testing.assert_close(mine, theirs, atol=5e-2, rtol=5e-2)


def test_a_vlm_trains_alike():
    vlm = pico_vlm()
    ids, mask = ids_of(9, 4)
    ids = ids % 300
    labels = ids.masked_fill(mask == 0, -100)
    losses = []
    for kind in ("eager", "xformers"):
        vlm.llm.set_attn_implementation(kind)
        vlm.tower.model.set_attn_implementation(kind)
        losses.append(vlm(ids, mask, labels=labels).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_rows_of_several_samples_go_through_a_vlm_block_by_block(monkeypatch):
    seen = []
    monkeypatch.setattr(attention, "_kernel", lambda *given: seen.append(given[3]) or documented(*given))
    vlm = pico_vlm()
    ids, mask = ids_of(9, 9)
    ids = ids % 300
    positions = torch.tensor([[*range(4), *range(5)], [*range(9)]])
    losses = []
    for kind in ("eager", "xformers"):
        vlm.llm.set_attn_implementation(kind)
        losses.append(vlm(ids, mask, labels=ids, position_ids=positions).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert {type(bias).__name__ for bias in seen} == {"BlockDiagonalCausalMask"}
