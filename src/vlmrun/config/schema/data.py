"""Data sets: files, format, and where they come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlmrun.config.marks import Neutral, Volatile
from vlmrun.config.schema.base import Node, Positive, Target

FieldMap = dict[str, str | None]
MEGAPIXELS = 64.0  # what `image_megapixels` is where it is not given


class About(Node):
    """Where a data set comes from. Shown by `check` when a file is missing, and by `vlmrun recipes`."""

    url: str
    licence: str
    records: Positive | None  # that the file should have; None: not published
    rounded: Annotated[bool, Neutral(False)]  # `records` is rounded: from the name that the data set is published under
    fetch: str  # how to get it, in one or two sentences


class DataConfig(Node):
    """One source of samples. Paths are relative to the prepared folder when `prepare` is set."""

    format: str
    split: Annotated[str | None, Neutral(None)]  # energon: a part of its split.yaml; null: train
    fields: Annotated[FieldMap | None, Neutral(None)]  # of shards: image, context, answers; null: as they say
    ignore_keys: Annotated[list[str], Neutral([])]  # keys of records that are dropped, with * and ?; image marks, too
    annotations: str  # of shards: their folder
    images: str | None  # folder that every image path must stay inside
    image_roots: Annotated[list[str], Neutral([])]  # further folders that links in it may lead to
    image_megapixels: Annotated[float, Field(gt=0, le=178), Neutral(MEGAPIXELS)]  # larger images are refused
    on_error: Literal["fail", "skip"]  # skip: counted and listed in skipped.jsonl
    prepare: Target | None  # makes the files, as a job of its own with an artifact of its own
    about: Annotated[About | None, Volatile]
