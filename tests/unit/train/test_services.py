"""Services through accelerate's trackers: what each is given. Stand-ins take the place of absent packages."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest

from vlmrun.checks import tracking as rules
from vlmrun.config.schema import Service
from vlmrun.train.accelerated import SERVICES, Accelerated, Named, flat
from vlmrun.train.log import Row
from vlmrun.train.scores import Score

ROWS = [
    Row(step=n, epoch=0.5, loss=1 / n, lr=1e-3, grad_norm=1.0, supervised_tokens=3, tokens=9, samples=1, seconds=1.0)
    for n in (1, 2)
]
SCORE = Score(step=2, loss=0.4, exact_match=0.5, supervised_tokens=3, samples=1, seconds=1.0)
CONFIG = {"name": "smoke", "stage": {"instruct": {"optim": {"lr": 1e-3}, "data": ["a", "b"]}}, "objective": None}


class Recorder:
    """Takes any call, attribute or item, and notes the calls."""

    def __init__(self, calls, name=""):
        self.__dict__ |= {"_calls": calls, "_name": name}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Recorder(self._calls, f"{self._name}.{name}")

    def __call__(self, *args, **values):
        self._calls.append((self._name, args, values))
        return None if self._name.endswith("current_task") else Recorder(self._calls, f"{self._name}()")

    def __setattr__(self, name, value):
        self._calls.append((f"{self._name}.{name} =", (value,), {}))

    def __setitem__(self, key, value):
        self._calls.append((f"{self._name}[{key}]", (value,), {}))


@pytest.fixture
def stand_in(monkeypatch):
    def make(package):
        calls = []
        module = types.ModuleType(package)
        module.__version__ = "9.9.9"
        module.__getattr__ = lambda name: Recorder(calls, name) if not name.startswith("__") else None
        monkeypatch.setitem(sys.modules, package, module)
        return calls

    return make


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "mlflow"])
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_training_is_one_run_of_the_project_with_everything_in_it(stand_in, tmp_path, monkeypatch, name, mode):
    for variable in ("COMET_OFFLINE_DIRECTORY", "CLEARML_CACHE_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    calls = stand_in(rules.SERVICES[name].package)
    service = Service.model_validate({"project": "pictures", "tags": ["baseline"], "mode": mode})
    named = Named("smoke/instruct", "pictures", "smoke", tmp_path / name, service)
    tracker = Accelerated(name, named, CONFIG, ROWS[:1])
    tracker.track(ROWS[1])
    tracker.evaluated(SCORE)
    tracker.close()
    said = repr(calls)
    for word in ("pictures", "smoke/instruct", "stage.instruct.optim.lr", "1.0", "0.5"):
        assert word in said, word
    assert "loss" in said
    if "tags" in rules.SERVICES[name].takes:
        assert "baseline" in said
    assert (tmp_path / name).is_dir()


def test_offline_is_offline(stand_in, tmp_path):
    named = Named("a/b", "p", "a", tmp_path, Service.model_validate({}))
    calls = stand_in("comet_ml")
    SERVICES["comet"](named).start()
    assert next(values for name, _, values in calls if name == "start")["online"] is False
    calls = stand_in("swanlab")
    SERVICES["swanlab"](named).start()
    assert next(values for name, _, values in calls if name == "init")["mode"] == "offline"
    calls = stand_in("clearml")
    SERVICES["clearml"](named)
    assert ("Task.set_offline", (), {"offline_mode": True}) in calls
    online = dataclasses.replace(named, service=Service.model_validate({"mode": "online"}))
    calls = stand_in("clearml")
    SERVICES["clearml"](online)
    assert "Task.set_offline" not in {name for name, _, _ in calls}


def test_mlflow_keeps_a_run_in_a_database_of_its_own(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    named = Named("smoke/instruct", "pictures", "smoke", tmp_path, Service.model_validate({"tags": ["baseline"]}))
    tracker = Accelerated("mlflow", named, CONFIG, ROWS[:1])
    tracker.track(ROWS[1])
    tracker.close()
    (run,) = mlflow.search_runs(experiment_names=["pictures"], output_format="list")
    assert run.data.params["stage.instruct.optim.lr"] == "0.001"
    assert run.data.metrics["train/loss"] == 0.5
    assert run.data.tags["group"] == "smoke"


def test_values_by_their_dotted_keys():
    assert flat(CONFIG) == {
        "name": "smoke", "stage.instruct.optim.lr": 1e-3, "stage.instruct.data": "['a', 'b']", "objective": "None"
    }  # fmt: skip
