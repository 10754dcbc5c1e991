"""What all tests share: one thread, no network, and one small finished run that many of them look at."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from tests import nest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.pop("VLMRUN_OUTPUT", None)
os.environ["VLMRUN_SITE"] = "off"  # a process at the end of every run, which tests of the site ask for

nest.settle()

ROOT = Path(__file__).resolve().parents[1]

# The smoke recipe, small: a few pictures and a few steps. It learns nothing and takes every way once.
TINY = [
    "+recipe=smoke",
    *(f"data.shapes_{name}.prepare.n_train=48" for name in ("captions", "instruct", "lora_a", "lora_b", "test")),
    *(f"data.shapes_{name}.prepare.n_test=12" for name in ("captions", "instruct", "lora_a", "lora_b", "test")),
    *(f"stage.{name}.max_steps=4" for name in ("pretrain", "instruct", "lora", "lora2")),
    *(f"stage.{name}.global_batch=8" for name in ("pretrain", "instruct", "lora", "lora2")),
    *(f"stage.{name}.micro_batch=4" for name in ("pretrain", "instruct", "lora", "lora2")),
    *(f"stage.{name}.save_steps=2" for name in ("pretrain", "instruct", "lora", "lora2")),
    *(f"stage.eval_{name}.max_samples=8" for name in ("pretrain", "instruct", "merge", "merge2", "average")),
    *(f"stage.eval_{name}.max_new_tokens=4" for name in ("pretrain", "instruct", "merge", "merge2", "average")),
]


@pytest.fixture(autouse=True)
def _the_logger_as_it_was() -> Iterator[None]:
    """A worker run in this process sets the logger up for good; pytest then hands its records out twice."""
    logger = logging.getLogger("vlmrun")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _the_environment_as_it_was() -> Iterator[None]:
    """A worker run in this process names its rank in the environment, and a later test's child would believe it."""
    with mock.patch.dict(os.environ):
        yield


Vlmrun = Callable[..., subprocess.CompletedProcess[str]]


def run_vlmrun(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a real process; `tests/nest.py` says what the process is spared."""
    return subprocess.run(
        [sys.executable, "-m", "vlmrun.cli", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture
def vlmrun(tmp_path: Path) -> Vlmrun:
    """`vlmrun(*arguments, **environment)`, started in an empty folder."""

    def start(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_vlmrun(*arguments, cwd=cwd, **environment)

    return start


@dataclass(frozen=True)
class Finished:
    """A finished tiny run: where it is, the overrides it was made with, and what it printed."""

    folder: Path
    overrides: list[str]
    stderr: str
    stdout: str

    @property
    def output(self) -> Path:
        """Its output root."""
        return self.folder / "outputs"

    def stage(self, name: str) -> Path:
        """The folder of one of its stages."""
        return (self.output / "runs" / "smoke" / "stages" / name).resolve()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny recipe, run once for all workers of pytest-xdist. Tests may read it, never write to it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "tiny_run"
    folder.mkdir(exist_ok=True)
    with (folder / "once").open("a") as once:
        fcntl.flock(once, fcntl.LOCK_EX)
        said = folder / "stderr.txt"
        if not said.is_file():
            done = run_vlmrun(*TINY, cwd=folder, VLMRUN_SITE="on")
            assert done.returncode == 0, done.stderr
            said.write_text(done.stderr)
            (folder / "stdout.txt").write_text(done.stdout)
    return Finished(folder, TINY, said.read_text(), (folder / "stdout.txt").read_text())
