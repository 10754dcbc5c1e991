"""The convert stage: what it makes, what goes into its key, and what is refused before anything runs."""

import json

import pytest

from tests.integration.jobs import HARDWARE
from tests.pico import pico_model_config
from vlmrun import back, graph
from vlmrun.checks.rules import check
from vlmrun.config.compose import compose
from vlmrun.config.job import StageJob
from vlmrun.config.schema import RunConfig
from vlmrun.run import identity
from vlmrun.stages import convert

STAGE = {
    "kind": "convert", "to": "llava", "base_model": None, "tower": None, "template": None, "dtype": "keep", "tp": 1,
    "skip": [], "prove": True,
}  # fmt: skip


def _run(tmp_path, *overrides):
    words = ["+recipe=smoke", f"output={tmp_path}", "+stage@stage.export=convert", *overrides]
    return RunConfig.model_validate(compose(words, []).tree)


def _job(folder, source, **changes):
    stage = STAGE | {"init_from": str(source)} | changes
    (folder / "stage").mkdir()
    return StageJob.model_validate(
        {
            "name": "export", "key": "0", "run": "r", "folder": str(folder / "stage"), "stage": stage,
            "model": pico_model_config(folder / "parts").model_dump(by_alias=True), "data": {},
            "parents": {str(source): str(source)}, "prepared": [], "hardware": HARDWARE, "tracking": [],
        }
    )  # fmt: skip


def test_it_writes_a_model_folder_or_our_own_weights(tmp_path, model):
    job = _job(tmp_path, model, to="hf_llava")
    made = back.stage(job).execute(job)
    assert made.roots == ("model",)
    assert (made.summary["from"], made.summary["to"], made.summary["generated"] > 0) == ("native", "hf_llava", True)
    assert json.loads((tmp_path / "stage/model/config.json").read_text())["model_type"] == "llava"
    (tmp_path / "back").mkdir()
    made = convert.execute(_job(tmp_path / "back", tmp_path / "stage/model", to="native", prove=False))
    assert made.roots == ("weights",)
    assert (tmp_path / "back/stage/weights/model.json").is_file()


def test_its_key_follows_its_values_its_parent_and_the_files_of_a_foreign_folder(tmp_path, model):
    def key(*overrides):
        run = _run(tmp_path, "stage.export.to=hf_llava", *overrides)
        planned, problems = graph.plan(run)
        assert problems == []
        return identity.keys(planned, run)["export"]

    names = ("instruct", str(model), str(model / "llm"))
    keys = [key(f"stage.export.init_from={name}") for name in names]
    assert len(set(keys)) == 3
    assert key("stage.export.init_from=instruct", "stage.export.prove=false") == keys[0]
    assert key("stage.export.init_from=instruct", "stage.export.dtype=bf16") != keys[0]
    assert key("stage.export.init_from=instruct", f"stage.export.base_model={model}") != keys[0]
    assert key("stage.export.init_from=instruct", f"stage.export.tower={model / 'tower'}") != keys[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stage.export.to=delta"], "a delta is a difference"),
        (["stage.export.to=llava", "stage.export.tp=2"], "tp is of megatron"),
        (["stage.export.to=llava", "stage.export.skip=[lm_head]"], "skip is of bnb4 and bnb8"),
    ],
)
def test_values_that_do_not_go_together_are_named(tmp_path, overrides, said):
    run = _run(tmp_path, "stage.export.init_from=instruct", *overrides)
    assert any(said in problem.what for problem in check(run))


def test_what_it_starts_from_must_be_there(tmp_path):
    _, problems = graph.plan(_run(tmp_path, "stage.export.to=llava", "stage.export.init_from=nowhere"))
    assert [problem.where for problem in problems] == ["stage.export.init_from"]
    chosen = ["stage.export.to=llava", "stage.export.init_from=instruct", "stage.export.base_model=nowhere"]
    _, problems = graph.plan(_run(tmp_path, *chosen))
    assert [problem.where for problem in problems] == ["stage.export.base_model"]
