"""The values of every recipe, kept in a file: a changed default shows up as a difference to be looked at.

After a wanted change: VLMRUN_UPDATE_GOLDEN=1 pytest tests/golden, then read `git diff tests/golden`.
"""

import os

import pytest
import yaml

from tests.golden import composed
from tests.golden.composed import RECIPES, changes
from vlmrun.config.compose import conf_dir

PIPELINES = sorted(path.stem for path in (conf_dir() / "pipeline").glob("*.yaml"))
UPDATE = "VLMRUN_UPDATE_GOLDEN=1 pytest tests/golden"


@pytest.fixture(scope="module")
def kept():
    """Both files; written first when that is asked for."""
    if os.environ.get("VLMRUN_UPDATE_GOLDEN"):
        with pytest.MonkeyPatch.context() as patch:
            _forget(patch)
            composed.write()
    return composed.load("recipes.yaml"), composed.load("presets.yaml")


@pytest.fixture(autouse=True)
def no_folders_of_the_user(monkeypatch):
    _forget(monkeypatch)


def _forget(patch):
    for name in ("VLMRUN_OUTPUT", "VLMRUN_ASSETS", "VLMRUN_DATA", "VLMRUN_MODELS"):
        patch.delenv(name, raising=False)


@pytest.mark.parametrize("name", RECIPES)
def test_the_composed_recipe_is_the_one_kept(kept, name):
    recipes, presets = kept
    assert name in recipes, f"not kept yet: {UPDATE}"
    run, _ = composed.run_of(name)
    found = changes(composed.expected(recipes[name], presets), composed.flat(run))
    assert not found, f"{name} is not as kept ({UPDATE}, if that is wanted):\n" + "\n".join(found)
    # The digest sees what equal values hide: their order, and 1 in place of 1.0.
    assert composed.entry(name) == recipes[name], f"{name} is composed another way, with equal values: {UPDATE}"


def test_the_presets_are_the_ones_kept(kept):
    _, presets = kept
    found = {path: changes(values, composed.preset(path)) for path, values in presets.items()}
    assert not any(found.values()), {path: lines for path, lines in found.items() if lines}


def test_nothing_is_kept_of_a_recipe_or_a_preset_that_is_gone(kept):
    recipes, presets = kept
    assert sorted(recipes) == RECIPES
    assert set(presets) == {"config"} | {path for entry in recipes.values() for path in entry["made_of"].values()}


def test_what_is_kept_gives_back_every_value(kept):
    recipes, presets = kept
    values = composed.expected(recipes["smoke"], presets)
    assert values == composed.flat(composed.run_of("smoke")[0])
    assert values["stage.lora2.lora.r"] == 8
    assert "stage.lora2.lora" not in values


def test_a_changed_value_is_named():
    before, after = {"a.b": 1, "a.c": [2], "d": None}, {"a.b": 1, "a.c": [3], "d.e": 4}
    assert changes(before, after) == ["a.c: [2] -> [3]", "d: None -> '(absent)'", "d.e: '(absent)' -> 4"]


@pytest.mark.parametrize("path", [*(f"recipe/{name}" for name in RECIPES), *(f"pipeline/{name}" for name in PIPELINES)])
def test_a_recipe_keeps_to_the_rules_of_composition(path):
    """Plain entries, then overrides, then _self_; no recipe inherits a recipe; its command stands in its head."""
    text = (conf_dir() / f"{path}.yaml").read_text()
    kind, _, name = path.partition("/")
    assert text.startswith("# @package _global_\n")
    entries = yaml.safe_load(text)["defaults"]
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    overrides = [entry.startswith("override ") for entry in names]
    assert names[-1] == "_self_"
    assert overrides[:-1] == sorted(overrides[:-1])
    assert not any("recipe" in entry for entry in names)
    if kind == "recipe":
        assert f"vlmrun +recipe={name}" in text.splitlines()[1] + text.splitlines()[2]
        assert names.count("/pipeline") <= 1
    else:  # stages and their data only; what they run on and with is the recipe's choice
        assert "# Source: " in text or "   Source: " in text
        assert not {"/pipeline", "override /model", "override /hardware"} & set(names)
        assert set(yaml.safe_load(text)) - {"tracking"} == {"defaults", "stage"}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_shared(name):
    """One recipe alone needs no pipeline: its values stand in its own file."""
    texts = [(conf_dir() / "recipe" / f"{recipe}.yaml").read_text() for recipe in RECIPES]
    assert sum(f"- /pipeline: {name}\n" in text for text in texts) > 1
