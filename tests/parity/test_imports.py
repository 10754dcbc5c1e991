"""A script of a published table imports to the published recipe; what differs is listed with its reason."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.parity.test_recipe_values import _run as composed_recipe
from vlmrun.config import derived
from vlmrun.config.compose import compose, conf_dir
from vlmrun.importers import write
from vlmrun.importers.meaning.draft import Options
from vlmrun.importers.script import Request, plan

TABLES = {
    path.stem: yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
}
ENTRIES = {"minicpm": "finetune.py", "bunny": "bunny/train/train.py", "denseconnector": "llava/train/train.py"}
RENAMED = {"minicpm": {"lora_enable": "use_lora"}}
# Values of the tables that no flag of that project says.
NO_FLAG = {"modules_to_save", "double_quant", "quant_type"}
# Where a recipe is not its script, and why. Keys are regular expressions.
REASONS = {
    r"stage\.save_total_limit": "the recipes keep the checkpoint before the newest",
    r"stage\.(save_steps|log_steps|prefetch|save_async)": "not in the tables",
    r"stage\.(init_from|data|seed|eval\.data)": "names of this run",
    r"model\.(llm|tower|connector)\.(path|weights)": "where the parts lie on this computer",
    r"model\.llm\.tokens.*": "a name that the tables shorten is taken as any LLM",
    r"model\.max_length": "captions are far below the limit of the recipe's other stages",
    r"stage\.quant\..*": "part of the preset where nothing is held in few bits",
    r"stage\.lora\..*": "part of the preset where no adapters are trained",
}


def _script(project, script, run):
    flags = {name: value for name, value in script["flags"].items() if project != "minicpm" or name not in NO_FLAG}
    flags = {RENAMED.get(project, {}).get(name, name): value for name, value in flags.items()}
    flags.setdefault("model_name_or_path", str(run.model.llm.arguments["path"]))
    flags.setdefault("data_path", "records.json")
    if project == "minicpm":
        flags.setdefault("eval_data_path", "held_out.json")
        flags["evaluation_strategy"] = "steps"
    else:
        flags.setdefault("mm_use_im_patch_token", False)
        flags.setdefault("model_max_length", 2048)
        flags.setdefault("vision_tower", str(run.model.tower.arguments["path"]))
        if run.model.connector.arguments.get("depth") == 2:
            flags.setdefault("mm_projector_type", "mlp2x_gelu")
        if project == "denseconnector":
            flags.setdefault("mm_dense_connector_type", run.model.connector.arguments["kind"])
        if run.model.tower.arguments.get("scales"):
            flags.setdefault("use_s2", True)
    if "llama-vicuna" in str(flags["model_name_or_path"]) or "???" in flags["model_name_or_path"]:
        flags["model_name_or_path"] = "./llama-vicuna-7b"
    words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    entry = (
        "llava/train/train_xformers.py"
        if run.hardware.attention == "xformers"
        else ENTRIES.get(project, "llava/train/train_mem.py")
    )
    return f"torchrun --nproc_per_node {script['gpus']} {entry} \\\n  {shlex.join(words)} --output_dir out\n"


def _flat(value, key=""):
    if isinstance(value, dict):
        return {path: leaf for name, inner in value.items() for path, leaf in _flat(inner, f"{key}.{name}").items()}
    return {key.lstrip("."): value}


def _published(run, stage):
    kept = {"stage": run.stage[stage].model_dump(), "model": run.model.model_dump(by_alias=True)}
    kept["template"] = derived.template(run.stage[stage], run.model)
    del kept["model"]["template"], kept["stage"]["template"]
    return _flat(kept) | {"hardware.precision": run.hardware.precision}


def _imported(recipe):
    """What the imported recipe composes to, from the same files: presets first, the script's values over them."""
    (stage,) = recipe.stages
    values = _flat({"stage": _option("stage/_train"), "model": {"new_tokens": [], "tiles": None}})
    for part, item in recipe.model.items():
        option = _option(f"model/{item.value}" if part == "model" else f"model/{part}/{item.value}")
        whole = part == "model" or str(item.value).startswith("dense_")
        values |= _flat(option, "model" if whole else f"model.{part}")
    if "model" in recipe.model:
        for part in ("llm", "tower", "connector"):
            values = _flat(_option(f"model/{part}/{values.pop(f'model.defaults.{part}')}"), f"model.{part}") | values
    for key, item in stage.settings.items():
        values |= _flat(item.value, f"stage.{key}")
    for key, item in recipe.shared.items():
        values |= _flat(item.value, key)
    values["template"] = values.pop("stage.template")
    return values


@cache
def _option(path):
    values = yaml.safe_load((conf_dir() / f"{path}.yaml").read_text("utf-8"))
    for item in values.pop("defaults", []):
        values.setdefault("defaults", {}).update(item if isinstance(item, dict) else {})
    return values


def _rows():
    for project, table in TABLES.items():
        for script in table["scripts"]:
            recipe, _, stage = script["runs"][0].partition(".")
            if "warmup_ratio" in script["flags"]:
                yield pytest.param(project, recipe, stage, script, id=f"{project}-{recipe}.{stage}")


@pytest.mark.parametrize(("project", "recipe", "stage", "script"), sorted(_rows(), key=lambda row: row.values[1]))
def test_a_recipe_is_the_import_of_its_script(tmp_path, project, recipe, stage, script):
    run = composed_recipe(recipe)
    path = tmp_path / "train.sh"
    path.write_text(_script(project, script, run), encoding="utf-8")
    found, _ = plan(Request([path], options=Options(family=project)))
    ours, theirs = _published(run, stage), _imported(found.recipes[0])
    if "version" not in script["flags"] and project != "minicpm":
        ours["template"] = theirs["template"]  # set in the script's environment
    if "stage.eval.steps" in theirs:  # what is not written has its neutral value
        theirs = {"stage.eval.at_start": False, "stage.eval.min_delta": 0.0, **theirs}
    different = {key: (value, theirs.get(key)) for key, value in ours.items() if theirs.get(key) != value}
    assert not {key: both for key, both in different.items() if not any(re.fullmatch(one, key) for one in REASONS)}


GUIDES = Path(__file__).parent / "guides"
PAI = yaml.safe_load((Path(__file__).parent / "pai_flags.yaml").read_text("utf-8"))
# Where the recipe is not its script, and why.
PAI_REASONS = {
    r"hardware\.attention": "flash attention, once it is installed",
    r"stage\.init_from": "the script's folder of weights; the recipe starts from the published parts",
    r"(stage|data)\..*(annotations|data|about|seed|on_error)": "names and places of this run",
    r"hardware\.(launcher|gpu|nodes|ranks_per_node)": "the machine",
    r"stage\.(save_total_limit|prefetch|template)": "the model's, or not in the script",
    r"model\..*\.path": "where the parts are",
}


def test_the_recipe_of_pai_megatron_is_the_import_of_its_script(tmp_path):
    """Rebuilt from the specification's tables: `pai.sh`."""
    words = {"ENV": "dsw", "MODEL_SIZE": "7B", "SEQ_LEN": "576", "PP": "1", "DO": "true", "FL": "true", "AC": "true",
             "OPTIMIZER_OFFLOAD": "false", "DATASET_PATH": "/shards", "VALID_DATASET_PATH": "/shards",
             "PRETRAIN_CHECKPOINT_PATH": "/start", "OUTPUT_BASEPATH": "/out"}  # fmt: skip
    words |= {name: str(PAI["values"][name]) for name in PAI["arguments"] if name not in words}
    arguments = [words[name] for name in PAI["arguments"]]
    found, _ = plan(Request([GUIDES / "pai.sh"], arguments=arguments, options=Options(gpus=8), allow_unsupported=True))
    assert {account.flag for account in found.accounts if account.verdict in ("unsupported", "unknown")} == {
        "--hidden-dropout 0.1"
    }
    (recipe,) = found.recipes
    write.save(tmp_path, write.files(recipe, "pai.sh", "a100_bf16"), overwrite=False)
    tree = compose(["+recipe=pai"], [tmp_path]).tree
    theirs = _flat({key: tree[key] for key in ("model", "hardware", "tracking")} | {"stage": tree["stage"]["pretrain"]})
    run = compose(["+recipe=pai_llava_mistral_7b"]).tree
    ours = _flat({key: run[key] for key in ("model", "hardware", "tracking")} | {"stage": run["stage"]["pretrain"]})
    assert not {
        key: (value, theirs.get(key))
        for key, value in ours.items()
        if theirs.get(key) != value and not any(re.fullmatch(one, key) for one in PAI_REASONS)
    }
