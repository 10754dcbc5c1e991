"""Features of a frozen tower that are read instead of computed train the same to the last bit."""

import pytest
import torch

from tests.integration import ranks as forked
from tests.integration.jobs import execute, make_job, rows, run, weights, write_records
from vlmrun.model.tower_cache import TowerCache, identity
from vlmrun.model.towers.base import Tower

pytestmark = pytest.mark.ranks

WAYS = {
    "plain": (1, {"engine": "plain"}),
    "plain in bf16": (1, {"engine": "plain", "precision": "bf16"}),
    "ZeRO-2": (2, {"zero": 2, "micro_batch": 1}),
    "evaluated meanwhile": (1, {"engine": "plain", "eval": {
        "steps": 2, "data": ["shapes"], "max_samples": 4, "generate": 2, "max_new_tokens": 3,
        "at_start": True, "patience": None, "min_delta": 0.0,
    }}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("cached"))


def _without_the_tower(text):
    from vlmrun.train.model import parts

    assemble = parts.assemble

    def assembled(*arguments, **options):
        loaded = assemble(*arguments, **options)

        def forward(*_):
            raise AssertionError("computed again")

        loaded.vlm.tower.forward = forward
        return loaded

    parts.assemble = assembled
    execute(text)


@pytest.mark.parametrize("way", WAYS)
def test_the_second_run_never_asks_the_tower_and_trains_the_same(folder, tmp_path, way):
    n, changes = WAYS[way]
    exact = run(folder, f"exact {way}", n, **changes)
    cache = str(tmp_path / "features")
    keeping = run(folder, f"keeps {way}", n, tower_cache=cache, **changes)
    job = make_job(folder, f"uses {way}", max_steps=6, ranks_per_node=n, tower_cache=cache, **changes)
    forked.run(_without_the_tower, n, job.to_json(), group=n > 1)
    for cached in (keeping, job):
        assert (rows(cached), weights(cached)) == (rows(exact), weights(exact))
    assert len({file.parent for file in (tmp_path / "features").rglob("*.rows")}) == 1


class Eye(Tower):
    hidden_dim, n_patches, image_size, n_layers = 5, 2, 4, 1
    layers = (0, 1)

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(24, 5, generator=generator), requires_grad=False)
        self.seen, self.second = [], None

    def forward(self, pixels):
        self.seen.append(len(pixels))
        hidden = pixels.reshape(len(pixels), 2, 24) @ self.weight
        return [hidden, hidden[..., :3].tanh().to(self.second or hidden.dtype)]

    def config_dict(self):
        return {"model_type": "eye"}


def images(n, seed=0):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_layers_come_back_in_their_type(tmp_path, dtype):
    tower, pixels = Eye().to(dtype), images(6).to(dtype)
    cache = TowerCache(tmp_path, tower, None)
    made = cache.features(tower, pixels)
    read = cache.features(tower, pixels[[4, 0, 0, 5]])
    assert (len(tower.seen), cache.n_computed, cache.n_read) == (6, 6, 4)
    assert all(torch.equal(mine, theirs[[4, 0, 0, 5]]) for mine, theirs in zip(read, made, strict=True))
    assert [layer.dtype for layer in read] == [dtype, dtype]
    cache.close()


def test_every_unknown_image_is_computed_alone_and_once(tmp_path):
    """Bits must not depend on what else is in a batch, nor on what was known before it: a resumed run knows more."""
    tower, pixels = Eye(), images(4)
    cache = TowerCache(tmp_path, tower, None)
    cache.features(tower, pixels[:3])
    cache.features(tower, pixels[[0, 3, 3, 1]])
    assert tower.seen == [1, 1, 1, 1]
    cache.close()


def test_each_layer_has_its_type(tmp_path):
    tower = Eye()
    tower.second = torch.float16
    cache = TowerCache(tmp_path, tower, None)
    for _ in range(2):
        one, two = cache.features(tower, images(2))
        assert (one.dtype, two.dtype) == (torch.float32, torch.float16)
    assert torch.equal(two, tower(images(2))[1])
    cache.close()


def test_images_that_differ_in_one_bit_are_two(tmp_path):
    tower, pixels = Eye(), images(1)
    other = pixels.clone()
    other.view(torch.int32)[0, 2, 3, 3] ^= 1
    cache = TowerCache(tmp_path, tower, None)
    cache.features(tower, pixels)
    cache.features(tower, other)
    assert len(tower.seen) == 2
    cache.close()


def test_another_tower_or_way_of_computing_is_not_answered_for(tmp_path):
    pixels = images(2)
    others = [Eye(1), Eye().to(torch.bfloat16), Eye()]
    others[2].layers = (1, 0)
    caches = [TowerCache(tmp_path, tower, None) for tower in (Eye(), *others)]
    caches.append(TowerCache(tmp_path, Eye(), "another attention"))
    for cache, tower in zip(caches, [Eye(), *others, Eye()], strict=True):
        cache.features(tower, pixels.to(tower.dtype))
        assert (cache.n_read, cache.n_computed) == (0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        caches[0].features(Eye(), pixels)
    assert caches[0].n_read == 0
    for cache in caches:
        cache.close()
    assert identity(Eye(), None) == identity(Eye(), None)
