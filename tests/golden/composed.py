"""Composed recipes, kept short: a digest of the whole, and what a recipe changes in the presets it is made of.

`presets.yaml` holds the values of every preset that a recipe uses, `recipes.yaml` one entry a recipe:

    llava15_7b:
      sha256: of the composed run as YAML, so that nothing can change unseen
      made_of: {model: model/llava15_7b, stage.pretrain: stage/pretrain, ...}
      differs: {stage.pretrain.optim.max_grad_norm: 0.0, ...}

Presets and differences give back every value, so a failing test names what changed.
"""

import hashlib
from functools import cache
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.validate import validate

HERE = Path(__file__).parent
RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))
ABSENT = "(absent)"


@cache
def run_of(name):
    """The validated run of a recipe, and what it chose; what only the user can name is filled in."""
    composed = compose([f"+recipe={name}"])
    unset = [problem.where for problem in composed.problems if problem.what.endswith("has no value yet")]
    if unset:
        composed = compose([f"+recipe={name}", *(f"{key}=named-by-the-user" for key in unset)])
    run, problems = validate(composed.tree, composed.problems)
    assert [*composed.problems, *problems] == []
    return run.model_dump(by_alias=True), composed.choices


def entry(name):
    """What `recipes.yaml` holds of a recipe."""
    run, choices = run_of(name)
    made_of = {"model": f"model/{choices['model']}", "hardware": f"hardware/{choices['hardware']}"}
    made_of |= {f"data.{data}": f"data/{data}" for data in run["data"]}
    made_of |= {f"stage.{stage}": f"stage/{choices.get(f'stage@stage.{stage}', stage)}" for stage in run["stage"]}
    base = expected({"made_of": made_of, "differs": {}}, {path: preset(path) for path in ("config", *made_of.values())})
    values = flat(run)
    differs = {key: value for key, value in values.items() if key not in base or base[key] != value}
    gone = [key for key in base if key not in values and not _covered(key, differs)]
    return {
        "sha256": hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(run)).encode()).hexdigest(),
        "made_of": made_of,
        "differs": differs | dict.fromkeys(gone, ABSENT),
    }


@cache
def preset(path):
    """Values of one option of `conf/`, such as `stage/lora`, composed on its own."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = OmegaConf.merge({"seed": 0}, hydra_compose(path))
    group, _, name = path.partition("/")
    if group == "config":  # the name is the time, unless a recipe gives one
        left = [key for key in config if key not in ("name", "model", "data", "stage", "hardware")]
        config = OmegaConf.masked_copy(config, left)
    else:
        config = config[group] if group in ("model", "hardware") else config[group][name]
    values = flat(OmegaConf.to_container(config, resolve=True))
    return values | {"tracking": values["tracking"] or []} if group == "config" else values


def expected(kept, presets):
    """Every value of a kept recipe by its dotted key: those of its presets, then what differs."""
    values = dict(presets["config"])
    for where, path in kept["made_of"].items():
        values |= {f"{where}.{key}": value for key, value in presets[path].items()}
    values = {key: value for key, value in values.items() if not _covered(key, kept["differs"])}
    return {key: value for key, value in (values | kept["differs"]).items() if value != ABSENT}


def _covered(key, keys):
    """Whether a key's place is taken: a parent or a child of it has a value."""
    return any(key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in keys)


def flat(tree, prefix=""):
    """Dotted key -> value; lists and empty nodes are values."""
    values = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and value
        values |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return values


def changes(before, after):
    """Lines that name each changed value, such as `stage.lora.zero: 3 -> 2`."""
    keys = [*before, *(key for key in after if key not in before)]
    pairs = [(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys]
    return [f"{key}: {old!r} -> {new!r}" for key, old, new in pairs if old != new]


def write():
    """Writes both files anew."""
    entries = {name: entry(name) for name in RECIPES}
    used = ["config", *sorted({path for kept in entries.values() for path in kept["made_of"].values()})]
    _dump("presets.yaml", {path: preset(path) for path in used})
    _dump("recipes.yaml", entries)


def _dump(name, content):
    """One line a fact where that fits; of stages' presets one line a value, since those are what changes."""
    lines = []
    for key, kept in content.items():
        flow = None if key.startswith("stage/") or name == "recipes.yaml" else True
        lines += [f"{key}:", *(f"  {line}" for line in _lines(kept, flow))]
    part = HERE / f"{name}.part"
    part.write_text("\n".join(lines) + "\n", "utf-8")
    part.replace(HERE / name)


def _lines(kept, flow):
    options = {"sort_keys": False, "width": 140, "allow_unicode": True}
    if flow:
        return yaml.safe_dump(kept, default_flow_style=True, **options).splitlines()
    return [
        line
        for key, value in kept.items()
        for line in f"{key}: {yaml.safe_dump(value, default_flow_style=True, **options)}".splitlines()
        if line != "..."
    ]


def load(name):
    return yaml.safe_load((HERE / name).read_text("utf-8"))
