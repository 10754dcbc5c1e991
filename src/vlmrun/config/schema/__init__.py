"""The typed shape of a composed run. No defaults live here: every value stands in `conf/`, so `--cfg job` shows it.

A field marked `Volatile` moves work about without changing the result (how a batch is cut, how often to save); it is
left out of a stage's key, so changing it reuses or resumes what exists (see `run/identity.py`). The other marks are in
`marks.py`: what names a parent, a data source, a file.
"""

from __future__ import annotations

from vlmrun.config.marks import Volatile
from vlmrun.config.schema.average import (
    AverageStage,
    Breadcrumbs,
    Dare,
    Decay,
    Della,
    Density,
    Linear,
    Method,
    MethodNode,
    ModelStock,
    Rule,
    Sign,
    Slerp,
    TaskArithmetic,
    Ties,
    Weights,
)
from vlmrun.config.schema.base import (
    Aspect,
    Count,
    Every,
    Fraction,
    Kept,
    Name,
    Node,
    Positive,
    Precision,
    Rate,
    Target,
)
from vlmrun.config.schema.benchmark import BenchmarkConfig, Data, Generation, Keys, MetricName
from vlmrun.config.schema.data import About, DataConfig, FieldMap
from vlmrun.config.schema.hardware import HardwareConfig
from vlmrun.config.schema.model import Cutting, ModelConfig, Slices, Tiles
from vlmrun.config.schema.optim import Ema, Optim
from vlmrun.config.schema.run import RUN_NAME, RunConfig
from vlmrun.config.schema.stage import Stage, StageNode, UserStage
from vlmrun.config.schema.stages import (
    Asking,
    ConvertStage,
    EvaluateStage,
    Format,
    MergeStage,
    PrepareStage,
    Reading,
    SearchStage,
)
from vlmrun.config.schema.tracking import Service, Tracking, services
from vlmrun.config.schema.train import (
    Compat,
    DeepSpeed,
    Fp16,
    HeldOut,
    Order,
    Packing,
    TrainStage,
)
from vlmrun.config.schema.tune import Lora, Quant, Tune, Tuning

__all__ = [
    "RUN_NAME",
    "MetricName",
    "Keys",
    "Generation",
    "Data",
    "BenchmarkConfig",
    "About",
    "Asking",
    "Aspect",
    "AverageStage",
    "Breadcrumbs",
    "Compat",
    "ConvertStage",
    "Count",
    "Cutting",
    "Dare",
    "DataConfig",
    "Decay",
    "DeepSpeed",
    "Della",
    "Density",
    "Ema",
    "EvaluateStage",
    "Every",
    "FieldMap",
    "Format",
    "Fp16",
    "Fraction",
    "HardwareConfig",
    "HeldOut",
    "Kept",
    "Linear",
    "Lora",
    "MergeStage",
    "Method",
    "MethodNode",
    "ModelConfig",
    "ModelStock",
    "Name",
    "Node",
    "Optim",
    "Order",
    "Packing",
    "Positive",
    "Precision",
    "PrepareStage",
    "Quant",
    "Rate",
    "Reading",
    "Rule",
    "RunConfig",
    "SearchStage",
    "Sign",
    "Slerp",
    "Slices",
    "Stage",
    "StageNode",
    "Target",
    "TaskArithmetic",
    "Ties",
    "Tiles",
    "Service",
    "Tracking",
    "services",
    "TrainStage",
    "Tune",
    "Tuning",
    "UserStage",
    "Volatile",
    "Weights",
]
