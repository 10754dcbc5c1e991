"""Stage kind `convert`."""

from __future__ import annotations

from pathlib import Path

from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import ConvertStage, HardwareConfig
from vlmrun.kinds import needs
from vlmrun.kinds.base import Kind
from vlmrun.kinds.needs import Needs


class _Convert(Kind[ConvertStage]):
    stage = ConvertStage
    version = 2
    back = "vlmrun.stages.convert"

    def describe(self, stage: ConvertStage) -> str:
        return f"convert {stage.init_from} to {stage.to}"

    def reads(self, place: Path) -> bool:
        return place.exists()  # in which format, its content says

    def needs(self, stage: ConvertStage, shapes: Shapes, hardware: HardwareConfig, length: int) -> Needs:
        disk = needs.written(shapes.n_parameters, stage.dtype, hardware)
        return Needs(disk, needs.blocks(needs.HELD_CONVERTING, hardware))


KIND = _Convert()
