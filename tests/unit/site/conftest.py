"""An output root made by hand: runs with records, and one stage."""

import contextlib

import pytest

from tests.unit import made
from vlmrun.artifact import read
from vlmrun.errors import LaunchError
from vlmrun.outcome import Outcome
from vlmrun.run import record

HOSTILE = "</script><script>alert(1)</script>"


class Config:
    """As much of a composed run as a record wants."""

    def __init__(self, name, values):
        self.name, self._values = name, values

    def model_dump(self, **how):
        return self._values


def run(root, name, number, folders=(), error=None, **values):
    folder = root / "runs" / name / str(number)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: {name}\n")
    outcomes = [Outcome(read(each).name, read(each), each, reused=False) for each in folders]
    config = Config(name, {"name": name, **values})
    ends = pytest.raises(type(error)) if error else contextlib.nullcontext()
    overrides = [f"{key}={value}" for key, value in values.items()]
    with ends, record.kept(folder, config, (overrides, ()), lambda: outcomes):
        if error:
            raise error
    return folder


@pytest.fixture
def root(tmp_path):
    """An output root with a training, a run of it and one that failed."""
    stage = made.train(tmp_path, "first", [3.0, 2.0, None, 0.5], parents=())
    run(tmp_path, "demo", 1, [stage], lr=1)
    run(tmp_path, "demo", 2, error=LaunchError("the <disk> is full", "outputs", "free some"), lr=HOSTILE)
    return tmp_path
