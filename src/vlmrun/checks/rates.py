"""Learning rates far from those that models of a size are trained with: the presets' rates, which stand in `conf/`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from vlmrun.arch.published import config_of
from vlmrun.config.catalog import conf_dir
from vlmrun.config.schema import ModelConfig, RunConfig, TrainStage
from vlmrun.errors import VlmrunError

_PRESETS = {"full": "instruct", "lora": "lora", "qlora": "qlora"}  # by how the LLM is tuned; otherwise pretrain
_OF_SMALL = {"qlora": "lora"}
_SMALL = 256  # the width of an LLM that learns with the rates of model=micro
# Published recipes are up to 25 times above the preset of their kind of tuning, and MiniCPM-V's guide 200 times below.
_ABOVE = 40.0
_BELOW = 300.0
_BELOW_OF_SMALL = 40.0


@dataclass(frozen=True)
class Far:
    """A rate, and the preset's that it is far from."""

    rate: float
    usual: float
    preset: str

    @property
    def text(self) -> str:
        """`learning rate 2e-05 is 100 times below that of the preset micro_instruct (0.002)`."""
        times, side = self.rate / self.usual, "above"
        if times < 1:
            times, side = 1 / times, "below"
        usual = f"that of the preset {self.preset} ({self.usual:g})"
        return f"learning rate {self.rate:g} is {times:,.0f} times {side} {usual}"


def far(stage: TrainStage, model: ModelConfig) -> Far | None:
    """A training stage's rate, where it is far from that of the preset for its tuning and size; None: it is not."""
    small = _is_small(model)
    preset = _PRESETS.get(stage.tune.llm, "pretrain")
    preset = f"micro_{_OF_SMALL.get(preset, preset)}" if small else preset
    usual = _rate_of(preset)
    above, below = stage.optim.lr / usual, usual / max(stage.optim.lr, 1e-30)
    is_far = above > _ABOVE or below > (_BELOW_OF_SMALL if small else _BELOW)
    return Far(stage.optim.lr, usual, preset) if is_far else None


def warnings(run: RunConfig) -> list[str]:
    """A line for each stage of a run whose rate is far from the usual one."""
    said = []
    for name, stage in run.stage.items():
        if isinstance(stage, TrainStage) and (not run.only or name in run.only):
            found = far(stage, run.model)
            if found is not None:
                said.append(f"stage.{name}: {found.text}; the preset's: stage.{name}.optim.lr={found.usual:g}")
    return said


def _is_small(model: ModelConfig) -> bool:
    try:
        values = config_of(model.llm, "llm").values
    except (VlmrunError, OSError):
        return False  # a problem of its own
    widths = [values.get(key) for key in ("hidden_size", "n_embd", "d_model")]
    return any(isinstance(width, int) and width <= _SMALL for width in widths)


@cache
def _rate_of(preset: str) -> float:
    found: Any = yaml.safe_load((conf_dir() / "stage" / f"{preset}.yaml").read_text("utf-8"))
    return float(found["optim"]["lr"])
