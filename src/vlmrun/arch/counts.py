"""How many parameters each part has, and how many of them are trained."""

from __future__ import annotations

from typing import NamedTuple

from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import Lora, Tune


class Counts(NamedTuple):
    """Parameters of a part, adapters included, and how many of them are trained."""

    total: int
    trained: int


def counts(
    shapes: Shapes, tune: Tune, lora: Lora | None, new_rows: int = 0, *, tower_lora: Lora | None = None
) -> dict[str, Counts]:
    """Of each part, as `train.audit` counts them before the first step."""
    llm, tower, connector = shapes.llm, shapes.tower, shapes.connector
    adapter = llm.n_adapter(lora, tune.llm_last) if lora is not None and tune.adapters else 0
    beside = llm.n_bias(lora) + llm.n_whole(lora) if lora is not None and tune.adapters else 0
    whole = llm.n_parameters if tune.llm_last is None else min(tune.llm_last, llm.layers) * llm.n_block
    trained = {"freeze": 0, "full": whole, "new_tokens": llm.n_embedding if new_rows else 0}
    put = tower.n_adapter(tower_lora, tune.tower_last) if tower_lora is not None and tune.tower == "lora" else 0
    learns = {"freeze": 0, "lora": put, "full": tower.n_last(tune.tower_last)}
    return {
        "llm": Counts(llm.n_parameters + adapter, trained.get(tune.llm, adapter + beside)),
        "tower": Counts(tower.n_parameters + put, learns[tune.tower]),
        "connector": Counts(connector.n_parameters, connector.n_parameters if tune.connector == "full" else 0),
    }
