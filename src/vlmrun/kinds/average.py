"""Stage kind `average`."""

from __future__ import annotations

from vlmrun.arch.sizes import Shapes
from vlmrun.config import derived
from vlmrun.config.schema import AverageStage, HardwareConfig
from vlmrun.kinds import needs
from vlmrun.kinds.base import Kind
from vlmrun.kinds.needs import Needs


class _Average(Kind[AverageStage]):
    stage = AverageStage
    version = 2
    back = "vlmrun.stages.average"

    def describe(self, stage: AverageStage) -> str:
        terms = zip(derived.average_weights(stage), stage.models, strict=True)
        text = "average " + " + ".join(f"{weight:g} {name}" for weight, name in terms)
        if stage.method.name != "linear":
            text += f" by {stage.method.name}" + (f" from {stage.base_model}" if stage.base_model else "")
        return text + (f", {len(stage.rules)} rule(s)" if stage.rules else "")

    def needs(self, stage: AverageStage, shapes: Shapes, hardware: HardwareConfig, length: int) -> Needs:
        disk = needs.written(shapes.n_parameters, stage.dtype, hardware)
        return Needs(disk, needs.combining(len(stage.models), hardware))


KIND = _Average()
