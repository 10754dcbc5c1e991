"""Two finished stages or runs, made by hand, side by side."""

import json

import pytest
import yaml

from vlmrun import artifact
from vlmrun.artifact import Artifact, Parent
from vlmrun.compare import both, sides
from vlmrun.errors import CheckpointError


def _rows(answers, expected="red"):
    return [
        {"question_id": str(n), "data": "d", "image": f"{n}.png", "text": "?", "split": "", "category": "c",
         "expected": expected, "answer": answer}
        for n, answer in enumerate(answers)
    ]  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Writes a finished stage below an output root."""

    def made(name, key, *, values=(), rows=(), records=None, summary=(), version="0.1.0"):
        folder = tmp_path / "stages" / f"{name}-{key}"
        folder.mkdir(parents=True)
        data = {}
        if records is not None:
            file = tmp_path / f"{name}-{key}.json"
            file.write_text(json.dumps(records))
            data = {"talks": {"annotations": str(file)}}
        (folder / "job.json").write_text(json.dumps({"name": name, "stage": dict(values), "data": data}))
        (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = Artifact(
            name=name, kind="evaluate", key=key, run="r", created=artifact.now(), version=version,
            summary=dict(summary), parents=[Parent(name="merge", key="0" * 10, path="x")], environment={"torch": "2"},
            files=artifact.describe_files(folder, ("answers.jsonl",)),
        )  # fmt: skip
        artifact.write_text(folder / artifact.NAME, found.model_dump_json())
        return folder

    return made


def _compare(root, first, second):
    return both.compare(sides.find(root, first), sides.find(root, second))


def test_values_numbers_and_answers(tmp_path, make):
    make("one", "a" * 10, values={"batch": 1}, rows=_rows(["red", "blue", "blue"]), summary={"accuracy": 1 / 3})
    make("two", "b" * 10, values={"batch": 2}, rows=_rows(["red", "red", "green"]), summary={"accuracy": 2 / 3})
    found = _compare(tmp_path, "one", "two")
    assert {change.key for change in found.values} == {"name", "stage.batch"}
    (stage,) = found.stages
    assert stage.stage == "one / two"
    assert not stage.same
    assert (stage.n_asked, [answer.id for answer in stage.answers]) == (3, ["1", "2"])
    assert stage.answers[0].right == (False, True)
    assert (stage.paired.better, stage.paired.worse) == (1, 0)
    assert stage.paired.difference == pytest.approx(1 / 3)
    assert all(stage.numbers[0].intervals)
    json.dumps(both.to_json(found))


def test_records_that_were_added_and_removed(tmp_path, make):
    kept = [{"id": "k", "conversations": []}]
    make("one", "a" * 10, records=[*kept, {"id": "old"}, {"id": "old"}])
    make("two", "b" * 10, records=[{"id": "new"}, *kept])
    (data,) = _compare(tmp_path, "one", "two").data
    assert (data.counts, data.added, data.removed) == ((3, 2), 1, 2)
    assert data.shown == ["+new", "-old"]


def test_data_of_equal_content_in_another_place_is_the_same(tmp_path, make):
    make("one", "a" * 10, records=[{"id": "k"}])
    make("two", "b" * 10, records=[{"id": "k"}])
    assert _compare(tmp_path, "one", "two").data == []


@pytest.mark.parametrize("damage", ["gone", "torn", "not UTF-8"])
def test_data_that_cannot_be_read_is_named(tmp_path, make, damage):
    make("one", "a" * 10, records=[{"id": "k"}])
    make("two", "b" * 10, records=[{"id": "l"}])
    file = tmp_path / f"two-{'b' * 10}.json"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"[{" if damage == "torn" else b'[{"id": "\xff"}]')
    (data,) = _compare(tmp_path, "one", "two").data
    assert data.added is None
    assert ("not there" if damage == "gone" else "not compared") in data.note


def test_other_versions_are_named(tmp_path, make):
    make("one", "a" * 10)
    make("two", "b" * 10, version="0.2.0")
    assert [(c.key, c.first, c.second) for c in _compare(tmp_path, "one", "two").code] == [("vlmrun", "0.1.0", "0.2.0")]


def test_scores_of_other_protocols_are_not_compared(tmp_path, make):
    for name, key, prompt in (("one", "a" * 10, "p"), ("two", "b" * 10, "q")):
        folder = make(name, key, rows=_rows(["red", "blue"]))
        (folder / "scores.json").write_text(json.dumps({"protocol": {"id": prompt, "template": prompt}}))
    (stage,) = _compare(tmp_path, "one", "two").stages
    assert stage.protocol == ["template: 'p' and 'q'"]


def test_the_paired_test_is_about_the_questions_of_the_accuracy_shown(tmp_path, make):
    unseen = {"split": "unseen", "question_id": "9"}
    make("one", "a" * 10, rows=[*_rows(["red", "red"]), {**_rows(["red"])[0], **unseen}])
    make("two", "b" * 10, rows=[*_rows(["red", "red"]), {**_rows(["blue"])[0], **unseen}])
    (stage,) = _compare(tmp_path, "one", "two").stages
    assert (stage.paired.n_questions, stage.paired.difference) == (2, 0.0)
    assert [answer.id for answer in stage.answers] == ["9"]


def test_a_score_between_right_and_wrong_counts_as_it_is(tmp_path, make):
    scored = [[{**row, "score": score} for row in _rows(["x", "y"])] for score in (0.3, 0.6)]
    make("one", "a" * 10, rows=scored[0])
    make("two", "b" * 10, rows=scored[1])
    (stage,) = _compare(tmp_path, "one", "two").stages
    assert stage.paired.difference == pytest.approx(0.3)


def test_runs_are_found_by_their_number(tmp_path, make):
    for number in ("1", "2"):
        run = tmp_path / "runs" / "exp" / number
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"seed: {number}")
    found = _compare(tmp_path, "exp/1", "exp/2")
    assert [(change.key, change.first, change.second) for change in found.values] == [("seed", 1, 2)]


def test_runs_are_compared_stage_by_stage(tmp_path, make):
    stages = [make("lora", "a" * 10), make("extra", "c" * 10), make("lora", "b" * 10, rows=_rows(["red"]))]
    for name, own, rate in (("exp", stages[:2], 1e-4), ("exp2", stages[2:], 2e-4)):
        run = tmp_path / "runs" / name
        (run / "stages").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump({"name": name, "stage": {"lora": {"optim": {"lr": rate}}}}))
        for folder in own:
            (run / "stages" / folder.name.rpartition("-")[0]).symlink_to(folder)
    found = _compare(tmp_path, "exp", str(tmp_path / "runs" / "exp2"))
    assert [change.key for change in found.values] == ["name", "stage.lora.optim.lr"]
    assert [stage.stage for stage in found.stages] == ["lora"]
    assert found.alone == (["extra"], [])
    assert _compare(tmp_path, "exp", "exp").stages[0].same


def test_a_name_of_nothing_is_answered_with_the_nearest(tmp_path, make):
    make("lora", "a" * 10)
    with pytest.raises(CheckpointError, match="lora") as caught:
        sides.find(tmp_path, "lorra")
    assert "no run and no finished stage" in str(caught.value)


def test_a_name_of_two_things_is_refused(tmp_path, make):
    make("lora", "a" * 10)
    (tmp_path / "runs" / "lora").mkdir(parents=True)
    (tmp_path / "runs" / "lora" / "config.yaml").write_text("{}")
    with pytest.raises(CheckpointError, match="a run and a stage"):
        sides.find(tmp_path, "lora")
