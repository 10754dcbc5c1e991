"""`vlmrun diff` on a finished run."""

import json

from tests.conftest import run_vlmrun


def test_two_evaluations(tiny_run):
    done = run_vlmrun("diff", "eval_pretrain", "eval_merge", cwd=tiny_run.folder)
    assert done.returncode == 0, done.stderr
    assert "stage.init_from" in done.stdout
    assert "answers that changed: " in done.stdout
    as_json = json.loads(run_vlmrun("diff", "eval_pretrain", "eval_merge", "--json", cwd=tiny_run.folder).stdout)
    (stage,) = as_json["stages"]
    assert as_json["values"]["stage.init_from"] == {"first": "pretrain", "second": "merge"}
    assert stage["n_asked"] > 0
    assert len(stage["answers"]) <= stage["n_asked"]


def test_a_run_and_itself(tiny_run):
    done = run_vlmrun("diff", "smoke", "outputs/runs/smoke", cwd=tiny_run.folder)
    assert done.returncode == 0, done.stderr
    assert "values that differ: none" in done.stdout
    assert done.stdout.count("the same result, file by file") > 5


def test_what_is_not_there(tiny_run):
    done = run_vlmrun("diff", "smoke", "smok", cwd=tiny_run.folder)
    assert done.returncode == 4
    assert "did you mean 'smoke'" in done.stderr
