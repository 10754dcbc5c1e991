"""Every recipe's resolved values against a table of what the upstream scripts pass.

The tables (`tests/parity/recipes/*.yaml`) are written from the family's specification, not from `conf/`. Every flag is
mapped to a value of the resolved run here; a flag that is not mapped, a recipe without a table and a table without its
recipe fail.
"""

import math
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.parity.zero_files import differences
from vlmrun.config import derived
from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.schema import AverageStage, TrainStage
from vlmrun.config.validate import validate

TABLES = {
    path.stem: yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
}
OURS = {"smoke", "emoji_smollm2", "pai_llava_mistral_7b"}  # of vlmrun itself, or with a test of their own
TEMPLATES = {
    "plain": "plain",
    "v0": "llava_v0",
    "v1": "vicuna_v1",
    "llava_llama_2": "llava_llama_2",
    "mistral": "kollava_mistral",
    "llama_3": "llama_3",
    "bunny": "bunny",
    "phi3": "bunny",
    "minicpm": "vicuna_v1",
    "llama": "bunny_llama",
}
LLMS = {  # Bunny's model_type -> where its LLM lies
    "phi-1.5": "phi-1_5",
    "phi-2": "phi-2",
    "phi-3": "Phi-3-mini-4k-instruct",
    "stablelm-2": "stablelm-2-1_6b",
    "qwen1.5-1.8b": "Qwen1.5-1.8B",
    "minicpm": "MiniCPM-2B",
    "llama3-8b": "Meta-Llama-3-8B-Instruct",
}
TOWERS = {"EVA02-CLIP-L-14-336": "eva02"}
# What each published file sets besides the stage: whether it clips (spec 4.4: at 1.0 unless the file is silent).
ZERO = {
    "zero2.json": (2, 0.0, "none"),
    "zero3.json": (3, 0.0, "none"),
    "zero3_offload.json": (3, 1.0, "cpu"),
    "ds_config_zero2.json": (2, 1.0, "none"),
    "ds_config_zero3.json": (3, 1.0, "none"),
}
GIVEN = "named-by-the-user"
CONNECTORS = {"linear": ("MLP", 1), "mlp2x_gelu": ("MLP", 2)}


class Resolved:
    """One stage of a composed recipe, as the flags see it."""

    def __init__(self, run, stage, script):
        self.run, self.stage, self.gpus = run, stage, script["gpus"]
        self.on_gpus = script.get("on_gpus", self.gpus)  # where the recipe runs elsewhere with the same global batch
        self.optim, self.tune = stage.optim, stage.tune
        self.betas = [0.9, script["flags"].get("adam_beta2", 0.999)]

    def rate(self, part):
        """The rate a part really learns with; None when it is frozen."""
        if getattr(self.tune, part) == "freeze":
            return None
        own = {"llm": None, "connector": self.optim.connector_lr, "tower": self.optim.tower_lr}[part]
        return self.optim.lr if own is None else own

    def connector(self):
        """Class and depth."""
        target = self.run.model.connector
        name = target.target.rpartition(".")[2]
        return ("MLP" if name == "Dense" else name, target.arguments.get("depth", 2))


def _rate(r, value):
    """Without mm_projector_lr the one rate holds for every part that learns."""
    return (r.rate("connector") if r.tune.llm == "freeze" else r.rate("llm")) == value


def _projector_rate(r, value):
    """Bunny's unfrozen tower learns at the projector's rate."""
    return r.rate("connector") == value and r.rate("tower") in (None, value)


def _micro_batch(r, value):
    return r.stage.micro_batch == value and r.on_gpus == derived.ranks(r.run.hardware)


def _accumulation(r, value):
    return r.stage.global_batch == value * r.stage.micro_batch * r.gpus and r.stage.loss == "micro_mean"


def _adapters(r, value):
    """All linear layers, unless a flag names them."""
    named = r.run.model.template == "minicpm_v25"
    return r.tune.adapters == value and (not value or named or r.stage.lora.targets == "all-linear")


def _saved(r, value):
    """What trains whole beside the adapters; the resampler is the connector."""
    return r.stage.lora.modules_to_save == [name for name in value if name != "resampler"] and (
        ("resampler" in value) == (r.tune.connector == "full")
    )


def _deepspeed(r, value):
    zero, clip, offload = ZERO[value]
    # A few ZeRO-3 runs with new tokens are ZeRO-2 here: tokens cannot be added to a partitioned embedding.
    allowed = {zero, 2} if r.run.model.image_markers else {zero}
    values = (r.stage.engine, r.optim.max_grad_norm, r.stage.offload)
    if r.stage.zero == zero:
        assert differences(value, r.stage, r.run.hardware) == {}
    return r.stage.zero in allowed and values == ("deepspeed", clip, offload)


def _markers(r, value):
    return (r.run.model.image_markers == ["<im_start>", "<im_end>"]) == value and (value or not r.run.model.new_tokens)


def _connector_only(r, value):
    """With start and end tokens their two rows learn beside the connector, unless the head is the same matrix (MPT)."""
    rows = r.run.model.image_markers and "mpt" not in str(r.run.model.llm.arguments["path"])
    return value and (r.tune.llm, r.tune.tower, r.tune.connector) == (
        "new_tokens" if rows else "freeze",
        "freeze",
        "full",
    )


def _dense(r, value):
    target = r.run.model.connector
    return target.target.endswith("dense.Dense") and target.arguments["kind"] == value


def _annotations(r, value):
    (name,) = r.stage.data
    return Path(r.run.data[name].annotations).name == value


def _tower(r, value):
    path = str(r.run.model.tower.arguments["path"]).rpartition("/")[2].lower()
    return TOWERS[value] in path.replace("-", "") and "336" in path if value in TOWERS else path == value.lower()


def _llm(r, value):
    """Weights that nobody may hand out are named by the user."""
    path = str(r.run.model.llm.arguments["path"])
    if f"/{value}-native/" in path:  # a published VLM, taken apart
        return all(f"/{value}-native" in str(part) for part in (r.run.model.tower, r.run.model.connector))
    name = path.rpartition("/")[2].lower()
    return name == (GIVEN if value.startswith("llama-vicuna") else value.lower())


def _max_length(r, value):
    """A model has one limit for all its stages here: the second stage's, which captions are far below."""
    longer = derived.template(r.stage, r.run.model) == "plain" and r.run.model.max_length > value
    return r.run.model.max_length == value or longer


def _layer(r, value):
    layers = r.run.model.tower.arguments.get("layers")
    return layers == [value] or (layers is None and r.run.model.connector.target.endswith("dense.Dense"))


def _precision(name):
    # A script that sets neither bf16 nor fp16 trains in fp32.
    return lambda r, value: (r.run.hardware.precision == name) == value


FLAGS = {
    "model_name_or_path": _llm,
    "model_type": lambda r, v: LLMS[v].lower() in str(r.run.model.llm.arguments["path"]).lower(),
    "version": lambda r, v: derived.template(r.stage, r.run.model) == TEMPLATES[v],
    "vision_tower": _tower,
    "mm_projector_type": lambda r, v: r.connector() == CONNECTORS[v],
    "mm_dense_connector_type": _dense,
    "mm_vision_select_layer": _layer,
    "mm_use_im_start_end": _markers,
    "tune_mm_mlp_adapter": _connector_only,
    "freeze_mm_mlp_adapter": lambda r, v: (r.tune.connector == "freeze") == v,
    "unfreeze_vision_tower": lambda r, v: (r.tune.tower == "full") == v,
    "use_s2": lambda r, v: (r.run.model.tower.arguments.get("scales") == [1, 2, 3]) == v,
    "data_path": _annotations,
    "image_aspect_ratio": lambda r, v: r.stage.image_aspect == v,
    "group_by_modality_length": lambda r, v: r.stage.group_by_modality_length == v,
    "model_max_length": _max_length,
    "learning_rate": _rate,
    "mm_projector_lr": _projector_rate,
    "per_device_train_batch_size": _micro_batch,
    "gradient_accumulation_steps": _accumulation,
    "num_train_epochs": lambda r, v: r.stage.epochs == v and r.stage.max_steps is None,
    "warmup_ratio": lambda r, v: r.optim.warmup_ratio == v,
    "lr_scheduler_type": lambda r, v: r.optim.schedule == v,
    "weight_decay": lambda r, v: r.optim.weight_decay == v and (r.optim.betas, r.optim.eps) == (r.betas, 1e-8),
    "bf16": _precision("bf16"),
    "fp16": _precision("fp16"),
    "tf32": lambda r, v: r.run.hardware.tf32 == v,
    "gradient_checkpointing": lambda r, v: r.stage.gradient_checkpointing == v,
    "dataloader_num_workers": lambda r, v: r.stage.workers == v,
    "save_steps": lambda r, v: r.stage.save_steps == v,
    # Ours keeps one more: the one before is there when the newest is damaged.
    "save_total_limit": lambda r, v: r.stage.save_total_limit == max(v, 2),
    "lora_enable": _adapters,
    "lora_r": lambda r, v: r.stage.lora.r == v,
    "lora_alpha": lambda r, v: r.stage.lora.alpha == v,
    "lora_dropout": lambda r, v: r.stage.lora.dropout == v,
    "lora_bias": lambda r, v: r.stage.lora.bias == v,
    "bits": lambda r, v: r.tune.llm == "qlora" and r.stage.quant.bits == v,
    "double_quant": lambda r, v: r.stage.quant.double == v,
    "quant_type": lambda r, v: r.stage.quant.type == v,
    "deepspeed": _deepspeed,
    "llm_type": lambda r, v: derived.template(r.stage, r.run.model) == {"llama3": "minicpm_v25"}[v],
    "tune_vision": lambda r, v: (r.tune.tower == "full") == v,
    "tune_llm": lambda r, v: (r.tune.llm == "full") == v,
    "q_lora": lambda r, v: (r.tune.llm == "qlora") == v and (not v or r.stage.quant.bits == 4),
    "lora_target_modules": lambda r, v: r.stage.lora.targets == v,
    "modules_to_save": _saved,
    "max_slice_nums": lambda r, v: (r.stage.image_aspect, r.run.model.tiles.max_slices) == ("slices", v),
    # In transformers' Trainer it decides alone, whatever num_train_epochs says.
    "max_steps": lambda r, v: r.stage.max_steps == v and r.stage.epochs is None,
    "eval_steps": lambda r, v: r.stage.eval.steps == v,
    "adam_beta2": lambda r, v: r.optim.betas[1] == v,
    "logging_steps": lambda r, v: r.stage.log_steps == v,
    # full_shard; FSDP runs clip at 1.0.
    "fsdp": lambda r, v: (r.stage.engine, r.stage.zero, r.optim.max_grad_norm) == ("fsdp", 3, 1.0),
}


@cache  # the imports of the same scripts are compared with them too
def _run(recipe):
    composed = compose([f"+recipe={recipe}"])
    unset = [problem.where for problem in composed.problems if problem.what.endswith("has no value yet")]
    if unset:
        composed = compose([f"+recipe={recipe}", *(f"{key}={GIVEN}" for key in unset)])
    run, problems = validate(composed.tree, composed.problems)
    assert run is not None, problems
    return run


def _rows():
    for project, table in TABLES.items():
        for script in table["scripts"]:
            for place in script["runs"]:
                recipe, _, stage = place.partition(".")
                yield pytest.param(recipe, stage, script, id=f"{project}-{place}")


@pytest.mark.parametrize(("recipe", "stage", "script"), sorted(_rows(), key=lambda row: row.values[0]))
def test_a_stage_has_the_values_of_its_script(recipe, stage, script):
    run = _run(recipe)
    assert stage in run.stage, f"stages: {', '.join(run.stage)}"
    resolved = Resolved(run, run.stage[stage], script)
    flags = script["flags"]
    wrong = [f"{flag}={value}" for flag, value in flags.items() if not FLAGS[flag](resolved, value)]
    assert not wrong, f"{script['script']}: {wrong}\n{run.stage[stage]}"


def test_every_recipe_has_a_table_and_every_table_its_recipe():
    recipes = {path.stem for path in (conf_dir() / "recipe").glob("*.yaml")} - OURS
    assert {row.values[0] for row in _rows()} == recipes


def test_every_training_stage_of_a_recipe_is_in_a_table():
    places = {(row.values[0], row.values[1]) for row in _rows()}
    for recipe in sorted({name for name, _ in places}):
        stages = {name for name, stage in _run(recipe).stage.items() if isinstance(stage, TrainStage)}
        assert stages <= {stage for name, stage in places if name == recipe}, recipe


@pytest.mark.parametrize(
    ("recipe", "weights"), [item for table in TABLES.values() for item in table.get("averages", {}).items()]
)
def test_the_average_has_the_published_weights(recipe, weights):
    (average,) = [stage for stage in _run(recipe).stage.values() if isinstance(stage, AverageStage)]
    assert average.weights == weights
    assert math.isclose(sum(weights), 1)
    assert len(set(average.models)) == len(weights)
