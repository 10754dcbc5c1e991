"""The most positions that an image can take, against what images of all shapes do take."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.arch.tiles import most, n_tiles
from vlmrun.config.schema import Tiles
from vlmrun.data.images.transform import ImageTransform
from vlmrun.model.tiles import tiling

EDGE, PER_TILE = 336, 576
edges = st.integers(1, 6)
grids = st.lists(st.tuples(edges, edges), min_size=1, max_size=12, unique=True)
sizes = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=20)


def taken(tiles, size):
    """Positions and pieces of an image, as the model lays it out."""
    layout = ImageTransform({"size": {"height": EDGE, "width": EDGE}}, tiles).layout(size)
    return tiling(PER_TILE, tiles)(layout), n_tiles(layout)


@settings(max_examples=100, deadline=None)
@given(
    grids,
    sizes,
    st.sampled_from([("spatial_unpad", n) for n in (None, 1, 2, 4, 9)] + [("spatial", None), ("flat", None)]),
)
def test_no_image_takes_more_than_the_most(grids, sizes, how):
    merge, max_tiles = how
    tiles = Tiles(grids=[[x * EDGE, y * EDGE] for x, y in grids], merge=merge, max_tiles=max_tiles)
    bound = most(PER_TILE, tiles, "anyres", EDGE)
    for size in sizes:
        tokens, pieces = taken(tiles, size)
        assert tokens <= bound.tokens
        assert pieces <= bound.pieces


@pytest.mark.parametrize("max_tiles", [None, 4, 9])
def test_the_most_is_nearly_reached(max_tiles):
    every = [[x * EDGE, y * EDGE] for x in range(1, 7) for y in range(1, 7)]
    tiles = Tiles(grids=every, merge="spatial_unpad", max_tiles=max_tiles)
    reached = max(taken(tiles, (width, height))[0] for width in range(80, 2100, 90) for height in range(80, 2100, 40))
    assert 0.95 * most(PER_TILE, tiles, "anyres", EDGE).tokens <= reached
