import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Item
from vlmrun.data.encode import Encoded
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.tiles import Tiling

PAD, TOKENS, SIZE = 7, 3, 4
tokens = st.integers(0, 9) | st.just(IMAGE_TOKEN)  # 7 is padding and an ordinary token as well


@st.composite
def items(draw):
    ids = draw(st.lists(tokens, min_size=1, max_size=9))
    labels = [IGNORE if t == IMAGE_TOKEN or draw(st.booleans()) else t for t in ids]
    n_images = ids.count(IMAGE_TOKEN)
    pixels = np.random.default_rng(len(ids)).random((n_images, 3, SIZE, SIZE), dtype=np.float32)
    return Item(Encoded(ids, labels, False, 0), pixels, f"id{len(ids)}")


def shrunk(row):
    """Undoes the expansion of images."""
    found, position = [], 0
    while position < len(row):
        found.append(row[position])
        position += TOKENS if row[position] == IMAGE_TOKEN else 1
    return found


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(items(), min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_round_trip(batch, side):
    out = Collator(PAD, Tiling(TOKENS), SIZE, padding_side=side)(batch)
    assert out["input_ids"].dtype == out["labels"].dtype == torch.long
    assert out["attention_mask"].dtype == torch.bool
    lengths = []
    for row, item in enumerate(batch):
        real = out["attention_mask"][row]
        lengths.append(int(real.sum()))
        assert shrunk(out["input_ids"][row][real].tolist()) == item.encoded.input_ids
        text = out["input_ids"][row] != IMAGE_TOKEN
        kept = [label for t, label in zip(item.encoded.input_ids, item.encoded.labels) if t != IMAGE_TOKEN]
        assert out["labels"][row][real & text].tolist() == kept
        assert (out["labels"][row][~real | ~text] == IGNORE).all()
        assert (out["input_ids"][row][~real] == PAD).all()
        edge = real[: lengths[-1]] if side == "right" else real[-lengths[-1] :]
        assert edge.all()
    assert out["input_ids"].shape == (len(batch), max(lengths))
    n_images = sum(len(item.pixels) for item in batch)
    assert int((out["input_ids"] == IMAGE_TOKEN).sum()) == n_images * TOKENS
    if n_images:
        assert np.array_equal(out["pixels"].numpy(), np.concatenate([item.pixels for item in batch]))
    else:
        assert out["pixels"].shape == (1, 3, SIZE, SIZE)
        assert not out["pixels"].any()
    assert out["ids"] == [item.id for item in batch]
    assert out["skipped"] == []


def test_unusable_samples_are_listed():
    none = np.zeros((0, 3, SIZE, SIZE), dtype=np.float32)
    batch = [Item(Encoded([1], [1], False, 1), none, "a"), Item(Encoded([1], [IGNORE], True, 0), none, "b", "too long")]
    out = Collator(PAD, Tiling(TOKENS), SIZE)(batch)
    assert out["skipped"] == [{"id": "b", "reason": "too long"}]
