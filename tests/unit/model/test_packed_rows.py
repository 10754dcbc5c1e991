"""Samples that share a row: each is computed as if it were alone, by every family and attention that may pack."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.pico import N_PATCHES, pico_vlm
from tests.unit.model.test_head import make_llm
from vlmrun.arch import families
from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Item
from vlmrun.data.encode import Encoded
from vlmrun.errors import ConfigError
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model import packed_rows
from vlmrun.model.head import Head

ATOL = 1e-5
STAND_IN = "flash_stand_in"
FAMILIES = sorted(set(families.having("packable")) - {"minicpm"})  # which is granite here


def _like_flash(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
    """What flash attention computes from a row and its positions: sequences begin where these are 0."""
    assert attention_mask is None
    assert position_ids.shape[0] == query.shape[0] == 1, "flash attention takes one row"
    starts = [*(position_ids[0] == 0).nonzero().flatten().tolist(), position_ids.shape[1]]
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    parts = [slice(*ends) for ends in itertools.pairwise(starts)]
    seen = [
        scaled_dot_product_attention(query[:, :, p], key[:, :, p], value[:, :, p], is_causal=True, scale=scaling)
        for p in parts
    ]
    return torch.cat(seen, 2).transpose(1, 2).contiguous(), None


@pytest.fixture(autouse=True)
def flash():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(STAND_IN, _like_flash)
    AttentionMaskInterface.register(STAND_IN, flash_attention_mask)
    yield
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(STAND_IN)


def _positions(rows, length):
    made = [[place for n in row for place in range(n)] for row in rows]
    return torch.tensor([row + list(range(length - len(row))) for row in made])


@pytest.mark.parametrize("attention", ["eager", "sdpa", STAND_IN])
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_row_are_as_if_alone(family, attention):
    known = families.find(family).attention
    if attention.replace(STAND_IN, "flash_attention_2") not in known:
        pytest.skip(f"transformers has no {attention} for {family}")
    llm = make_llm(family).eval()
    llm.config._attn_implementation = attention
    rows = [[4, 1, 3], [5, 2]]  # two rows, padded to nine
    embeds = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    positions = _positions(rows, 9)
    weight = torch.randn(2, 9, 61, generator=torch.Generator().manual_seed(1))

    def run(given):
        return llm(**packed_rows.inputs(llm, given, positions), use_cache=False).logits.reshape(2, 9, 61)

    packed = run(embeds)
    (packed_grad,) = torch.autograd.grad((packed * weight).sum(), embeds)
    llm.config._attn_implementation = "eager"
    for row, sizes in enumerate(rows):
        begin = 0
        for size in sizes:
            part = slice(begin, begin + size)
            alone = llm(inputs_embeds=embeds[row : row + 1, part], use_cache=False).logits
            (grad,) = torch.autograd.grad((alone * weight[row : row + 1, part]).sum(), embeds)
            torch.testing.assert_close(packed[row, part], alone[0], atol=ATOL, rtol=1e-4)
            torch.testing.assert_close(packed_grad[row, part], grad[row, part], atol=ATOL * 10, rtol=1e-3)
            begin += size
    llm.config._attn_implementation = attention
    changed = embeds.detach().clone()
    changed[0, :4] = 7.0
    other = run(changed)
    # Experts compute what they are given in one product, whose order of sums depends on how much that is.
    exactly = {"atol": 1e-5, "rtol": 1e-5} if families.find(family).experts else {"atol": 0.0, "rtol": 0.0}
    torch.testing.assert_close(other[0, 4:], packed[0, 4:], **exactly)
    torch.testing.assert_close(other[1], packed[1], **exactly)
    assert not torch.equal(other[0, :4], packed[0, :4])


def test_a_family_not_known_to_keep_samples_apart_is_refused():
    llm = make_llm("mpt")
    with pytest.raises(ConfigError, match="not known to stay apart in mpt"):
        packed_rows.inputs(llm, torch.zeros(1, 2, 32), torch.zeros(1, 2, dtype=torch.long))


def _items(vlm, seed=0):
    """A sample with one picture, text, one with two pictures, text: as they come from the dataset."""
    draw = np.random.default_rng(seed)
    texts = [[0, IMAGE_TOKEN, 9, 10, 11], [0, 5, 6], [0, 7, IMAGE_TOKEN, IMAGE_TOKEN, 12, 13], [0, 20, 21, 22]]
    found = []
    for number, ids in enumerate(texts):
        pixels = draw.standard_normal((ids.count(IMAGE_TOKEN), 3, vlm.image_size, vlm.image_size)).astype(np.float32)
        labels = [-100 if token == IMAGE_TOKEN else token for token in ids]  # the first token too: it is nobody's
        found.append(Item(Encoded(ids, labels, False, len(ids)), pixels, str(number)))
    return found


def _run(vlm, batch, *, labels=True):
    return vlm(
        batch["input_ids"],
        batch["attention_mask"],
        batch["pixels"],
        batch["labels"] if labels else None,
        position_ids=batch.get("position_ids"),
    )


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("family", ["llama", "phi", "qwen2"])
@pytest.mark.parametrize("sizes", [[4], [1, 2, 1]])
def test_loss_and_gradients_of_packed_pictures_and_text_are_those_of_the_samples(family, tower, sizes):
    vlm = pico_vlm(tower=tower)
    vlm.llm = make_llm(family, vocab_size=61).eval()
    vlm.head = Head(vlm.llm, "chunked", 3)
    collate = Collator(1, vlm.image_tokens, vlm.image_size)
    items = _items(vlm)
    alone = [_run(vlm, collate([item])) for item in items]
    truth = sum(output.loss_sum for output in alone)
    n_supervised = sum(output.n_supervised for output in alone)
    packed = _run(vlm, collate(items, sizes))
    assert packed.n_supervised == n_supervised == 11
    torch.testing.assert_close(packed.loss_sum, truth, atol=1e-4, rtol=ATOL)
    leaves = [p for p in vlm.parameters() if not any(p is unused for unused in vlm.tower.unused())]
    grads = [torch.autograd.grad(value / n_supervised, leaves, allow_unused=True) for value in (packed.loss_sum, truth)]
    for mine, other in zip(*grads, strict=True):
        assert (mine is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(mine, other, atol=ATOL, rtol=1e-3)


def test_another_picture_or_text_in_one_sample_changes_no_bit_of_the_others():
    vlm = pico_vlm()
    collate = Collator(1, vlm.image_tokens, vlm.image_size)
    items = _items(vlm)
    with torch.no_grad():
        before = _run(vlm, collate(items, [4]), labels=False).logits[0]
        items[0] = _items(vlm, seed=5)[0]
        items[0].encoded.input_ids[-1] = 30
        after = _run(vlm, collate(items, [4]), labels=False).logits[0]
    behind = 4 + N_PATCHES
    assert torch.equal(before[behind:], after[behind:])
    assert not torch.equal(before[:behind], after[:behind])
