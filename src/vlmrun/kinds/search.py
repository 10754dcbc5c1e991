"""Stage kind `search`: averages, of which the one that answers best is kept."""

from __future__ import annotations

from vlmrun.arch.sizes import Shapes
from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, SearchStage
from vlmrun.kinds import needs
from vlmrun.kinds.base import Kind
from vlmrun.kinds.needs import Needs


class _Search(Kind[SearchStage]):
    stage = SearchStage
    version = 1
    back = "vlmrun.stages.search"

    def describe(self, stage: SearchStage) -> str:
        tried = f"{len(derived.points(stage))} points of {stage.method.name}"
        return f"search {tried} over {', '.join(stage.models)} on {', '.join(stage.data)}"

    def needs(self, stage: SearchStage, shapes: Shapes, hardware: HardwareConfig, length: int) -> Needs:
        disk = needs.written(shapes.n_parameters, stage.dtype, hardware)
        memory = needs.answering(stage.batch, length + stage.max_new_tokens, shapes, hardware)
        return Needs(disk, memory, on_gpu=True)


KIND = _Search()
