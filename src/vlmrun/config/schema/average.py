"""The stage that averages finished models, and the methods it can use."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, WrapValidator

from vlmrun.config.marks import Parent
from vlmrun.config.schema.base import Kept, Node, Seed, Signed
from vlmrun.config.schema.chosen import Chosen
from vlmrun.config.schema.stage import StageNode

Density = Annotated[float, Field(gt=0.0, le=1.0)]
Weights = Annotated[list[Signed], Field(min_length=2)]
Decay = Annotated[float, Field(gt=0.0, lt=1.0)]
Sign = Literal["sum", "count"]


class MethodNode(Chosen):
    """Base of the ways to make one model of several.

    Attributes:
        made_by: the function that makes a tensor (`merging/methods`); empty: `combine` of the plugin's module.
        from_base: whether it counts changes from a base model.
        weighted: whether it takes a weight for each model.
        n_models: how many it takes; None: two or more.
    """

    by = "name"
    noun = "methods"
    classes: ClassVar[dict[str, type[Any]]] = {}
    made_by: ClassVar[str] = ""
    from_base: ClassVar[bool] = False
    weighted: ClassVar[bool] = True
    n_models: ClassVar[int | None] = None

    name: str


Method = Annotated[MethodNode, WrapValidator(MethodNode.typed), SerializeAsAny()]
_VECTORS = "vlmrun.merging.methods.task.vectors"


class Linear(MethodNode):
    """Weighted mean (model soups, arXiv:2203.05482)."""

    made_by = "vlmrun.merging.methods.interpolate.linear"

    name: Literal["linear"]
    sum: Literal["one", "normalize", "any"]  # weights must sum to 1, are divided by their sum, or are used as they are


class Slerp(MethodNode):
    """From one model to another along a great circle; the second weight is how far."""

    made_by = "vlmrun.merging.methods.interpolate.slerp"
    n_models = 2

    name: Literal["slerp"]
    sum: Literal["one", "normalize"]


class TaskArithmetic(MethodNode):
    """base + scale * sum(weight * change) (arXiv:2212.04089)."""

    made_by = _VECTORS
    from_base = True

    name: Literal["task_arithmetic"]
    normalize: bool  # divide by the sum of the weights that took part
    scale: Signed


class Ties(MethodNode):
    """Of every change the largest share, then one sign for each element (arXiv:2306.01708)."""

    made_by = _VECTORS
    from_base = True

    name: Literal["ties"]
    density: Density | list[Density]  # share that is kept; one for all, or one for each model
    sign: Sign | None  # elected by weight (sum), by number (count), or not at all
    normalize: bool
    scale: Signed


class Dare(MethodNode):
    """Of every change a random share (arXiv:2311.03099)."""

    made_by = _VECTORS
    from_base = True

    name: Literal["dare"]
    density: Density | list[Density]
    rescale: bool  # what is kept is divided by its chance
    sign: Sign | None  # as in ties; null: DARE alone
    normalize: bool
    scale: Signed
    seed: Seed


class Breadcrumbs(MethodNode):
    """Of every change a share, without the very largest and the smallest (arXiv:2312.06795)."""

    made_by = _VECTORS
    from_base = True

    name: Literal["breadcrumbs"]
    density: Density | list[Density]
    gamma: Annotated[float, Field(ge=0.0, lt=1.0)]  # share of the largest that is dropped
    sign: Sign | None
    normalize: bool
    scale: Signed


class Della(MethodNode):
    """Of every change a random share, in which large ones of a row have better chances (arXiv:2406.11617)."""

    made_by = _VECTORS
    from_base = True

    name: Literal["della"]
    density: Density | list[Density]
    epsilon: Annotated[float, Field(gt=0.0, lt=1.0)]  # chances run from density - epsilon to density + epsilon
    rescale: bool
    sign: Sign | None
    normalize: bool
    scale: Signed
    seed: Seed


class ModelStock(MethodNode):
    """Between base and mean, by how far the changes agree (arXiv:2403.19522); weights play no part."""

    made_by = "vlmrun.merging.methods.task.model_stock"
    from_base = True
    weighted = False

    name: Literal["model_stock"]


class Rule(Node):
    """Other weights for some tensors, such as a part or a layer."""

    tensors: str  # a regular expression, looked for in names such as tower.vision_model.encoder.layers.0.mlp.fc1.weight
    weights: Weights


class AverageStage(StageNode):
    """One model made of several finished ones with equal tensors."""

    kind: Literal["average"]
    models: Annotated[list[str], Field(min_length=2), Parent]
    weights: Weights | None  # one for each model
    ema: Decay | None  # in place of weights: models from old to new, older ones fade
    rules: list[Rule]  # the first that fits a tensor's name gives its weights
    method: Method
    base_model: Annotated[str | None, Parent]  # what changes are counted from: a stage or an artifact folder
    dtype: Kept
