"""Stage kind `merge`."""

from __future__ import annotations

from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import HardwareConfig, MergeStage
from vlmrun.kinds import needs
from vlmrun.kinds.base import Kind
from vlmrun.kinds.needs import Needs


class _Merge(Kind[MergeStage]):
    stage = MergeStage
    version = 3
    back = "vlmrun.stages.merge"

    def describe(self, stage: MergeStage) -> str:
        names, weights = [stage.init_from, *stage.adapters], stage.weights or [1.0] * (1 + len(stage.adapters))
        if len(names) == 1 and weights == [1.0]:
            return f"merge {stage.init_from}"
        return "merge " + " + ".join(f"{w:g} {name}" for w, name in zip(weights, names, strict=True))

    def needs(self, stage: MergeStage, shapes: Shapes, hardware: HardwareConfig, length: int) -> Needs:
        disk = needs.written(shapes.llm.n_parameters, stage.dtype, hardware)  # the other parts are linked
        return Needs(disk, needs.combining(1 + len(stage.adapters), hardware))


KIND = _Merge()
