"""The composed text of every recipe, kept as a file: a changed default shows up as a diff to be looked at.

After a wanted change: VLMRUN_UPDATE_GOLDEN=1 pytest tests/golden, then read `git diff tests/golden`.
"""

import os
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.validate import validate

HERE = Path(__file__).parent / "recipes"
RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_the_composed_recipe_is_the_one_kept(name, monkeypatch):
    monkeypatch.delenv("VLMRUN_OUTPUT", raising=False)
    monkeypatch.delenv("VLMRUN_ASSETS", raising=False)
    monkeypatch.delenv("VLMRUN_DATA", raising=False)
    composed = compose([f"+recipe={name}"])
    unset = [problem.where for problem in composed.problems if problem.what.endswith("has no value yet")]
    if unset:  # what only the user can name
        composed = compose([f"+recipe={name}", *(f"{key}=named-by-the-user" for key in unset)])
    run, problems = validate(composed.tree, composed.problems)
    assert [*composed.problems, *problems] == []
    text = OmegaConf.to_yaml(OmegaConf.create(run.model_dump(by_alias=True)))
    file = HERE / f"{name}.yaml"
    if os.environ.get("VLMRUN_UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.is_file(), "no golden file: see the head of this test"
    assert text == file.read_text()


def test_no_golden_file_is_left_of_a_recipe_that_is_gone():
    assert sorted(path.stem for path in HERE.glob("*.yaml")) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_keeps_to_the_rules_of_composition(name):
    """Plain entries, then overrides, then _self_; no recipe inherits a recipe; its command stands in its head."""
    text = (conf_dir() / "recipe" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert f"vlmrun +recipe={name}" in text.splitlines()[1] + text.splitlines()[2]
    entries = yaml.safe_load(text)["defaults"]
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    overrides = [entry.startswith("override ") for entry in names]
    assert names[-1] == "_self_"
    assert overrides[:-1] == sorted(overrides[:-1])
    assert not any("recipe" in entry for entry in names)
