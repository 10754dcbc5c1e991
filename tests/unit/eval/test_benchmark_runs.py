"""Benchmarks inside runs: presets, rules, and what the report shows of them."""

import io
import json

import pytest

from vlmrun.checks import benchmarks as rules
from vlmrun.checks import table
from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.schema import BenchmarkConfig, DataConfig
from vlmrun.config.validate import validate
from vlmrun.eval import benchmarks
from vlmrun.report import benchmarks as report
from vlmrun.run import identity

PRESETS = {"llava15": "llava15_7b", "bunny": "bunny_phi2_siglip", "quick": "llava15_7b"}


def run_of(*overrides):
    composed = compose(list(overrides))
    assert composed.problems == []
    run, problems = validate(composed.tree)
    assert problems == []
    return run


def test_every_preset_is_tried():
    assert {file.stem for file in (conf_dir() / "evaluate").glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_adds_one_stage_and_its_sets(preset):
    more = ["stage.benchmarks.init_from=instruct"] if preset == "quick" else []
    run = run_of(f"+recipe={PRESETS[preset]}", f"+evaluate={preset}", *more)
    stage = run.stage["benchmarks"]
    assert stage.init_from in run.stage
    assert all(isinstance(run.data[name], BenchmarkConfig) for name in stage.data)
    plain = run_of(f"+recipe={PRESETS[preset]}")
    assert {name: run.stage[name] for name in plain.stage} == plain.stage
    assert {name: run.data[name] for name in plain.data} == plain.data


def test_benchmarks_are_chosen_without_a_preset():
    run = run_of(
        *("+recipe=llava15_7b", "stage=[pretrain,instruct,benchmarks]", "benchmark=[pope]"),
        *("stage.benchmarks.init_from=instruct", "stage.benchmarks.data=[pope]"),
    )
    assert run.stage["benchmarks"].data == ["pope"]


def config(*changes):
    return benchmarks.load("mmbench", changes)[1]


def broken(*changes):
    """What the rules say of a run that answers a set with these values."""
    run = run_of(
        *("+recipe=llava15_7b", "stage=[pretrain,instruct,benchmarks]", "benchmark=[mmbench]"),
        *("stage.benchmarks.init_from=instruct", "stage.benchmarks.data=[mmbench]"),
    )
    run = run.model_copy(update={"data": {**run.data, "mmbench": config(*changes)}})
    return table.problems(rules.RULES, run)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (["generation.answers=3"], "greedy answers to a question are all the same"),
        (["generation.top_p=0.9"], "top_p has no effect at temperature 0"),
        (["generation.temperature=0.2", "generation.num_beams=3"], "beams are searched, not drawn"),
        (["generation.likelihood=true", "generation.num_beams=2"], "generates nothing"),
        (["generation.likelihood=true", "prompt=text"], "no options whose likelihood"),
        (["gold=/nowhere"], "no expected answers at '/nowhere'"),
    ],
)
def test_values_that_do_not_go_together_are_told(changes, what):
    (problem,) = broken(*changes)
    assert what in problem.what
    assert problem.fix
    assert problem.where.startswith("data.mmbench")


def test_values_that_do_are_not():
    for changes in ([], ["generation.temperature=0.7", "generation.answers=3", "generation.top_p=0.9"]):
        assert broken(*changes) == []


WATCHED = "stage.instruct.eval={steps: 1, data: [pope], max_samples: 8, generate: 0, max_new_tokens: 4, patience: null}"
PATIENT = "stage.instruct.eval.patience=2"


def watched(*changes):
    """What the rules say of a training that is asked benchmarks meanwhile."""
    sets = "benchmark=[pope,vqav2]"
    return table.problems(rules.RULES, run_of("+recipe=llava15_7b", sets, WATCHED, *changes), here=False)


def test_a_training_may_keep_the_best_model_by_a_benchmark():
    assert watched(PATIENT, "stage.instruct.keep_best=pope") == []


@pytest.mark.parametrize(
    ("changes", "what", "fix"),
    [
        (["stage.instruct.keep_best=poep"], "give no poep to choose by", "did you mean 'pope'"),
        (["stage.instruct.keep_best=loss"], "give no loss to choose by", "pope"),
        ([PATIENT], "give no loss to choose by", "pope"),
        (["stage.instruct.eval.generate=4"], "there are none", "generate=0"),
        (["stage.instruct.eval.data=[pope,vqav2]"], "vqav2 is scored by its server", "with a metric"),
        (["data.pope.generation.num_beams=3"], "greedy and in one pass", "num_beams=1"),
        (["data.pope.generation.temperature=0.5"], "greedy and in one pass", "temperature=0"),
    ],
)
def test_what_a_training_cannot_be_asked_is_told(changes, what, fix):
    (problem,) = watched(*changes)
    assert what in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize("name", ["loss", "exact_match"])
def test_a_benchmark_is_not_called_like_another_number(name):
    run = run_of("+recipe=llava15_7b", "benchmark=[pope]", WATCHED)
    stage = run.stage["instruct"]
    held_out = stage.eval.model_copy(update={"data": ["pope", name]})
    run = run.model_copy(
        update={
            "data": {**run.data, name: run.data["pope"]},
            "stage": {**run.stage, "instruct": stage.model_copy(update={"eval": held_out})},
        }
    )
    (problem,) = table.problems(rules.RULES, run, here=False)
    assert f"the number of other held-out data {name}" in problem.what
    assert problem.where == "stage.instruct.eval.data"
    assert f"{name}_set" in problem.fix


def test_the_key_knows_how_a_set_is_asked_and_its_gold(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "text": "?"}\n')
    (tmp_path / "gold.json").write_text("{}")
    base = [f"annotations={tmp_path / 'q.jsonl'}", "format=jsonl", f"gold={tmp_path / 'gold.json'}"]

    def key(*changes):
        return json.dumps(identity._data(config(*base, *changes), None), sort_keys=True)

    first = key()
    assert key("note=other", "published.me=1") == first
    assert key("tail=x") != first
    assert key("generation.temperature=0.5") != first
    (tmp_path / "gold.json").write_text("[]")
    assert key() != first


def test_the_key_of_other_data_is_what_it_was(tmp_path):
    (tmp_path / "q.jsonl").write_text("")
    values = {"format": "vqa", "annotations": str(tmp_path / "q.jsonl"), "images": None, "on_error": "fail"}
    found = identity._data(DataConfig(**values, prepare=None, about=None), None)
    assert set(found) == {"format", "on_error", "source", "annotations", "images"}


CARD = {
    "value": 0.5, "scale": 1.0, "interval": [0.4, 0.6], "upstream": {"value": None, "stops": "F1"}, "shuffled": 0.3,
    "n_answered": 9, "n_questions": 10, "n_doubtful": 1, "protocol": {"id": "abc"}, "published": {"LLaVA": 85.9},
    "categories": {"a": {"n_questions": 4, "accuracy": 0.25, "chance": 0.5}, "b<": {"n_questions": 6, "accuracy": 1.0}},
    "confusion": {"yes": {"yes": 3, "no": 2}, "no": {"no": 5}}, "note": "with <tokens>",
}  # fmt: skip


def test_the_report_shows_score_interval_protocol_and_tables(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"benchmarks": {"pope": CARD}}))
    html = report.show("eval", tmp_path)
    for text in (
        "50.0",
        "40.0 .. 60.0",
        "abc",
        "LLaVA 85.9",
        "ends without a score",
        "25.0%",
        "b&lt;",
        "with &lt;tokens",
    ):
        assert text in html
    stream = io.StringIO()
    report.write({"eval": tmp_path, "other": tmp_path / "missing"}, stream)
    assert "40.0 .. 60.0" in stream.getvalue()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"benchmarks": 3}', '{"seen": null}', '{"benchmarks": {"a": []}}'])
def test_a_file_that_is_none_shows_nothing(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    assert report.show("eval", tmp_path) == ""
