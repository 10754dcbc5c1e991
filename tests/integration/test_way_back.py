"""import(export(recipe)) == recipe, for every published recipe whose project has scripts to export to."""

from __future__ import annotations

import pytest

from vlmrun.config import derived
from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.schema import TrainStage
from vlmrun.config.validate import validate
from vlmrun.importers import write
from vlmrun.importers.export import script
from vlmrun.importers.script import Request, plan

FAMILIES = {"bunny": "bunny", "kollava": "llava", "llava": "llava", "llava15": "llava", "minicpm": "minicpm"}
RECIPES = [
    (path.stem, FAMILIES[path.stem.partition("_")[0]])
    for path in sorted((conf_dir() / "recipe").glob("*.yaml"))
    if path.stem.partition("_")[0] in FAMILIES
]


def _run(overrides, folders=()):
    composed = compose(overrides, folders)
    open_ = [problem.where for problem in composed.problems if problem.what.endswith("has no value yet")]
    if open_:
        return _run([*overrides, *(f"{key}=/records" for key in open_)], folders)
    run, problems = validate(composed.tree, composed.problems)
    assert run is not None, problems
    return run


def _stages(run):
    """Training stages by place: names, data and templates are compared by what they stand for."""
    names = {name: number for number, name in enumerate(run.stage)}
    for stage in run.stage.values():
        if isinstance(stage, TrainStage):
            files = [run.data[name].annotations for name in stage.data]
            held_out = [run.data[name].annotations for name in stage.eval.data] if stage.eval else None
            values = stage.model_dump(exclude={"data", "init_from", "template"})
            if stage.eval:
                values["eval"]["data"] = held_out
            yield values, files, names.get(stage.init_from, stage.init_from), derived.template(stage, run.model)


@pytest.mark.parametrize(("recipe", "family"), RECIPES)
def test_a_recipe_is_the_import_of_its_own_script(tmp_path, recipe, family):
    run = _run([f"+recipe={recipe}"])
    if "your/finished/model" in {getattr(stage, "init_from", None) for stage in run.stage.values()}:
        first, size = next(iter(run.stage)), recipe.split("_")[1]
        run = _run([f"+recipe={recipe}", f"stage.{first}.init_from=liuhaotian/llava-v1.5-{size}"])
    text = script(run, family)
    assert "# not said" not in text
    (tmp_path / "train.sh").write_text(text, encoding="utf-8")
    found, _ = plan(Request([tmp_path / "train.sh"], name="again"))
    (imported,) = found.recipes
    write.save(tmp_path / "conf", write.files(imported, "train.sh", "a100_bf16"), overwrite=False)
    again = _run(["+recipe=again"], [tmp_path / "conf"])
    assert script(again, family).replace("again", recipe) == text
    assert list(_stages(again)) == list(_stages(run))
    assert again.model.llm.arguments["path"] == run.model.llm.arguments["path"]
    kept = ("nodes", "ranks_per_node", "precision", "tf32", "env")
    assert {key: getattr(again.hardware, key) for key in kept} == {key: getattr(run.hardware, key) for key in kept}
