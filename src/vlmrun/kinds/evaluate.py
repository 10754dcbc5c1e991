"""Stage kind `evaluate`."""

from __future__ import annotations

from pathlib import Path

from vlmrun import store
from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import EvaluateStage, HardwareConfig
from vlmrun.kinds import needs
from vlmrun.kinds.base import Kind, Number
from vlmrun.kinds.needs import Needs


class _Evaluate(Kind[EvaluateStage]):
    stage = EvaluateStage
    version = 1
    back = "vlmrun.stages.evaluate"
    makes_model = False
    answers = True
    objective = "accuracy"
    numbers = (
        Number("accuracy", "accuracy", "share"),
        Number("accuracy_unseen", "unseen", "share"),  # on attribute combinations that no training image has
        Number("chance", "chance", "share"),
        Number("shuffled", "shuffled", "share"),  # when every question is given another question's image
    )

    def describe(self, stage: EvaluateStage) -> str:
        return f"evaluate {stage.init_from} on {', '.join(stage.data)}"

    def reads(self, place: Path) -> bool:
        return store.is_model(place)

    def needs(self, stage: EvaluateStage, shapes: Shapes, hardware: HardwareConfig, length: int) -> Needs:
        memory = needs.answering(stage.batch, length + stage.max_new_tokens, shapes, hardware)
        return Needs(memory=memory, on_gpu=True)


KIND = _Evaluate()
