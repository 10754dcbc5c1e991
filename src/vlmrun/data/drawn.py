"""How many records the drawn shapes have: known from the configuration, before they are drawn."""

from __future__ import annotations

from vlmrun.config.schema import DataConfig
from vlmrun.config.schema.train import DRAWN

# Of each file: records for a training image, and records without one.
_OF_AN_IMAGE = {"captions.json": (1, 0), "instruct.json": (2, 16), "lora_a.json": (1, 16), "lora_b.json": (1, 16)}


def n_records(data: DataConfig) -> tuple[int, int] | None:
    """All records and those with an image; None of other data, and of what another preparer makes."""
    known = _OF_AN_IMAGE.get(data.annotations)
    if data.prepare is None or data.prepare.target not in DRAWN or known is None:
        return None
    n_train = data.prepare.arguments.get("n_train")
    if not isinstance(n_train, int):
        return None
    each, without = known
    return n_train * each + without, n_train * each
