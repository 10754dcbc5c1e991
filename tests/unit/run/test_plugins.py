"""Which sweeps go to Hydra, which plugins are missing, and the number a run is judged by."""

from pathlib import Path

import pytest

from vlmrun.artifact import Artifact
from vlmrun.errors import ConfigError
from vlmrun.outcome import Outcome
from vlmrun.run import plugins
from vlmrun.run.sweep import expand


def outcome(name, kind, **summary):
    made = Artifact(
        name=name, kind=kind, key="k", run="r", created="c", parents=[], summary=summary, environment={}, files={}
    )
    return Outcome(name, made, Path(name), reused=False)


DONE = [
    outcome("pretrain", "train", loss=3.0),
    outcome("instruct", "train", loss=2.0, steps=7, engine="plain"),
    outcome("eval_a", "evaluate", accuracy=0.25),
    outcome("eval_b", "evaluate", accuracy=0.5),
]


def test_overrides_of_hydra_are_told_from_those_of_the_run():
    own, hydras = plugins.split(["+recipe=smoke", "hydra/launcher=joblib", "+hydra.launcher.x=1", "name=hydra.x"])
    assert own == ["+recipe=smoke", "name=hydra.x"]
    assert hydras == ["hydra/launcher=joblib", "+hydra.launcher.x=1"]


@pytest.mark.parametrize("option", ["hydra/launcher=joblib", "hydra/launcher=submitit_slurm", "hydra/sweeper=optuna"])
def test_a_missing_plugin_is_told_with_its_command(monkeypatch, option):
    assert list(plugins.check([option], multirun=True)) == []

    def find_spec(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(plugins.importlib.util, "find_spec", find_spec)
    (problem,) = plugins.check([option], multirun=True)
    assert problem.what.endswith("is not installed")
    assert problem.fix == "pip install 'vlmrun-trainer[sweep]'"


def test_the_objective_is_what_is_named_or_the_last_accuracy_or_the_last_loss(smoke):
    run = smoke()
    assert plugins.objective(run, DONE) == 0.5
    assert plugins.objective(run, DONE[:2]) == 2.0
    assert plugins.objective(run, []) is None
    assert plugins.objective(smoke("objective=instruct.steps"), DONE) == 7.0
    with pytest.raises(ConfigError, match=r"(?s)'instruct' has no number 'engine'.*numbers: loss, steps"):
        plugins.objective(smoke("objective=instruct.engine"), DONE)


def test_an_interval_is_checked_at_its_ends_and_else_refused():
    points = expand(["a=1", "b=interval(1,4)", "c=tag(log, interval(0.5,2.0))"], ends=True)
    assert [point for point, _ in points] == [
        ["a=1", f"b={b}", f"c={c}"] for b in (1.0, 4.0) for c in (0.5, 2.0)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="an interval has no points"):
        expand(["b=interval(1,4)"])


def test_what_is_fixed_is_what_does_not_sweep():
    assert plugins.fixed(["a=1", "b=1,2", "c=range(1,3)", "d=[1,2]", "e=interval(1,2)", "f=("]) == [
        "a=1",
        "d=[1,2]",
        "f=(",
    ]
