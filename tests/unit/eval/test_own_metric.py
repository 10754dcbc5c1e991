"""A benchmark metric from outside the package: one file, named by its dotted path."""

import json

import pytest

from vlmrun.checks import rules
from vlmrun.cli.app import main
from vlmrun.errors import ConfigError
from vlmrun.eval import benchmarks, metrics

CODE = """
from vlmrun.eval.metrics.base import UNANSWERED, Mark, Metric, accuracy


def mark(row, parity):
    if row.text is None:
        return UNANSWERED
    return Mark(1.0 if row.text[:1] == row.gold["answer"][:1] else 0.0, row.text[:1], None)


METRIC = Metric(mark, accuracy, reads="the first character")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_metrics").mkdir()
    (tmp_path / "my_metrics" / "initial.py").write_text(CODE)
    (tmp_path / "my_metrics" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"question_id": n, "image": None, "text": "What?", "answer": "red"} for n in range(4)]
    said = [{"question_id": str(n), "data": "own", "text": "What?", "expected": "red", "answer": text}
            for n, text in enumerate(("red", "rose", "blue", "ruby"))]  # fmt: skip
    for name, each in (("own.jsonl", rows), ("answers.jsonl", said)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in each))
    (tmp_path / "own.yaml").write_text(f"annotations: {tmp_path / 'own.jsonl'}\nmetric: my_metrics.initial\n")
    return tmp_path


def test_one_file_scores_a_benchmark(own, capsys, monkeypatch):
    command = ["score", str(own / "answers.jsonl"), "--benchmark", str(own / "own.yaml"), "--json"]
    assert main(command) == ConfigError.exit_code
    assert "VLMRUN_ALLOW" in capsys.readouterr().err
    monkeypatch.setenv("VLMRUN_ALLOW", "my_metrics")
    assert main(command) == 0
    card = json.loads(capsys.readouterr().out)["benchmarks"]["own"]
    assert card["value"] == 0.75
    assert card["protocol"]["metric"] == "my_metrics.initial"


def test_a_metric_of_ones_own_is_checked_without_importing_it(own, smoke, monkeypatch):
    run, (_, entry) = smoke(), benchmarks.load(str(own / "own.yaml"))

    def naming(metric):
        return run.model_copy(update={"data": {"own": entry.model_copy(update={"metric": metric})}})

    rule = next(rule for rule in rules.RULES if rule.name == "metric")
    (problem,) = rule.find(naming("my_metrics.initial"))
    assert problem.where == "data.own.metric"
    assert "VLMRUN_ALLOW" in problem.fix
    monkeypatch.setenv("VLMRUN_ALLOW", "my_metrics")
    assert list(rule.find(naming("my_metrics.initial"))) == list(rule.find(naming("exact"))) == []
    assert [problem.what for problem in rule.find(naming("my_metrics.gone"))] == ["no module 'my_metrics.gone'"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("exakt", "no metric 'exakt'"), ("os.path", "not allowed"), ("my_metrics.empty", "has no METRIC")],
)
def test_what_is_no_metric_is_named(own, monkeypatch, name, words):
    monkeypatch.setenv("VLMRUN_ALLOW", "my_metrics")
    with pytest.raises(ConfigError, match=words):
        metrics.of(name)
