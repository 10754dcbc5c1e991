"""Stage kind `prepare`, which the graph adds for data that are made here."""

from __future__ import annotations

from vlmrun.config.schema import PrepareStage
from vlmrun.kinds.base import Kind


class _Prepare(Kind[PrepareStage]):
    stage = PrepareStage
    version = 1
    back = "vlmrun.stages.prepare"
    makes_model = False

    def describe(self, stage: PrepareStage) -> str:
        return f"prepare data with {stage.source.target}"


KIND = _Prepare()
