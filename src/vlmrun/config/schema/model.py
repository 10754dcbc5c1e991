"""The model: its three parts, and how images are cut into tiles or slices for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from vlmrun.config.marks import Neutral
from vlmrun.config.schema.base import Few, Node, Positive, Target


class Tiles(Node):
    """How an image is cut under `image_aspect: anyres`, and how its tiles are put together again."""

    grids: Annotated[list[Annotated[list[Positive], Field(min_length=2, max_length=2)]], Field(min_length=1)]  # [w, h]
    merge: Literal["flat", "spatial", "spatial_unpad"]
    # a joined map of more features than N tiles have is made smaller (LLaVA-OneVision's anyres_max_N); null: never
    max_tiles: Annotated[Positive | None, Neutral(None)]


class Slices(Node):
    """How an image is cut under `image_aspect: slices` (MiniCPM-V), and what stands around the slices in the text."""

    max_slices: Few  # cells of the grid, at most; 1: an image is never cut
    resolution: Positive  # a cell has about the area of a square of N by N pixels
    marks: Literal["nested", "flat"] | None  # nested: 2.0, 2.5; flat: 2.6, where cells have <slice> marks; null: none
    image_ids: Literal["never", "sliced", "always"]  # the image's number before it, always or when it is cut


def _kind_of_cutting(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return "tiles" if "grids" in keys or "merge" in keys else "slices"


Cutting = Annotated[Annotated[Tiles, Tag("tiles")] | Annotated[Slices, Tag("slices")], Discriminator(_kind_of_cutting)]


class ModelConfig(Node):
    """The three parts and how text is laid out between them."""

    llm: Target
    tower: Target
    connector: Target
    template: str  # how turns become text, unless a stage says otherwise
    max_length: Positive  # tokens a sample may have, image tokens included
    image_markers: Annotated[list[str], Field(min_length=2, max_length=2)] | None  # tokens around every image, added
    new_tokens: list[str]  # further tokens added to the vocabulary; the rows of all added ones start at the mean
    tiles: Cutting | None  # for image_aspect: anyres (Tiles) or slices (Slices)
