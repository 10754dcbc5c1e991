"""What we write as Megatron's is computed by Megatron-Core itself to our logits, on two tensor-parallel ranks."""

from importlib.util import find_spec

import pytest
import torch

from tests.integration import ranks
from tests.parity import megatron_oracle
from tests.pico import N_PATCHES, pico_loaded
from vlmrun.data import templates
from vlmrun.formats.base import How
from vlmrun.formats.convert import convert
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.weights import native

IDS = [0, 7, *[IMAGE_TOKEN] * N_PATCHES, 9, 10, 44]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed (extra: dev)")
def test_megatron_core_gives_our_logits_on_two_ranks(tmp_path):
    loaded = pico_loaded(tmp_path / "pico")
    native.save(
        tmp_path / "weights",
        loaded,
        template=templates.get("micro").to_dict(),
        image_aspect="square",
        tensors={},
    )
    convert(tmp_path / "weights", tmp_path / "megatron", "megatron", How(tp=2))
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = loaded.vlm(torch.tensor([IDS]), torch.ones(1, len(IDS), dtype=torch.bool), pixels).logits
    asked = [max(number, 0) for number in IDS]
    found = ranks.run(megatron_oracle.logits, 2, str(tmp_path / "megatron"), asked, pixels.tolist(), 2, timeout=240.0)
    theirs = torch.tensor(found[0])
    assert theirs.shape[-1] == 512, "the vocabulary is filled up to a multiple of 128 for each rank"
    n_rows = ours.shape[-1]
    assert torch.allclose(theirs[..., :n_rows], ours, atol=1e-5)
    assert not theirs[..., n_rows:].any(), "rows that fill the vocabulary are zero"
    assert torch.equal(torch.tensor(found[1]), theirs)
