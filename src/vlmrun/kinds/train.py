"""Stage kind `train`. What it needs is planned in `plan/`, which knows more about it than about any other."""

from __future__ import annotations

from vlmrun.config.schema import TrainStage
from vlmrun.kinds.base import Kind, Number


class _Train(Kind[TrainStage]):
    stage = TrainStage
    version = 4
    back = "vlmrun.stages.train"
    shares = True
    trains = True
    objective = "loss"
    numbers = (
        Number("steps", "steps", "count"),
        Number("loss", "loss", "loss"),
        Number("eval_loss", "held-out", "loss"),  # of a training that is evaluated meanwhile
    )

    def describe(self, stage: TrainStage) -> str:
        parts = {"llm": stage.tune.llm, "tower": stage.tune.tower, "connector": stage.tune.connector}
        trained = [f"{name} ({how})" for name, how in parts.items() if how != "freeze"]
        return f"train {' + '.join(trained)} on {', '.join(stage.data)}"


KIND = _Train()
