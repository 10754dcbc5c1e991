"""Upstream's DeepSpeed files against a stage's numbers, and given as files of one's own.

That every recipe has the numbers of its script's file is in test_recipe_values.py.
"""

import json
from functools import lru_cache

import pytest

from tests.parity.zero_files import FILES, WIDTH, differences
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate
from vlmrun.zero import config, user_json

# A stage for each file. MiniCPM's recipes lay the preset over their stages.
STAGES = {
    "zero2.json": ("pretrain", []),
    "zero3.json": ("instruct", []),
    "zero3_offload.json": ("instruct", ["stage.instruct.offload=cpu"]),
    "ds_config_zero2.json": ("instruct", ["+stage@stage.instruct=_minicpm_zero"]),
    "ds_config_zero3.json": ("instruct", []),
}


@lru_cache
def _stage(file):
    name, overrides = STAGES[file]
    run, problems = validate(compose(["+recipe=llava15_7b", *overrides]).tree)
    assert problems == []
    return run.stage[name], run.hardware


@pytest.mark.parametrize("file", FILES)
def test_a_stage_tells_deepspeed_the_numbers_of_its_file(file):
    assert differences(file, *_stage(file)) == {}


@pytest.mark.parametrize("file", FILES)
def test_the_file_itself_may_be_given(file, tmp_path):
    """The ones with a scheduler only where the stage trains as that did."""
    stage, hardware = _stage(file)
    path = tmp_path / file
    path.write_text(json.dumps(FILES[file]))
    stage = stage.model_copy(update={"deepspeed": stage.deepspeed.model_copy(update={"config": str(path)})})
    ours = config.deepspeed_config(stage, hardware, hidden_dim=WIDTH)
    found = [problem.what for problem in user_json.problems(FILES[file], stage, ours, "stage.x")]
    assert found == (["scheduler contradicts the stage"] if "scheduler" in FILES[file] else [])
    stage = stage.model_copy(update={"compat": stage.compat.model_copy(update={"offload_schedule": True})})
    merged = user_json.complete(stage, hardware, hidden_dim=WIDTH, name="x")
    fp16 = {"enabled": False} | {key: value for key, value in FILES[file]["fp16"].items() if value != "auto"}
    spoken = FILES[file].get("steps_per_print", ours["steps_per_print"])
    assert merged == ours | {"steps_per_print": spoken, "fp16": fp16}
