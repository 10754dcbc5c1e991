"""A rank that srun has started gets torch's names for what SLURM says in its own."""

import os

import pytest

from vlmrun import srun, worker

SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "MASTER_ADDR": "gpu1", "MASTER_PORT": "41234"}


@pytest.fixture
def task(monkeypatch):
    """`task(**environment)`: the exit code of a task, and what its worker saw."""
    for name in (*SLURM, "RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that what the task sets is taken back
        monkeypatch.delenv(name)

    def start(**environment):
        seen = {}
        monkeypatch.setattr(worker, "main", lambda: seen.update(os.environ) or 3)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return srun.main(), seen

    return start


def test_a_task_is_a_rank_and_ends_as_its_worker_does(task):
    code, seen = task(**SLURM)
    assert code == 3
    assert [seen[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["5", "8", "1"]


@pytest.mark.parametrize(("visible", "local"), [("2", "0"), ("0,1,2,3", "1"), ("", "1")])
def test_the_only_gpu_of_a_task_is_its_first(task, visible, local):
    assert task(**SLURM, CUDA_VISIBLE_DEVICES=visible)[1]["LOCAL_RANK"] == local


def test_a_start_by_hand_is_told(task, capsys):
    code, seen = task(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_LOCALID="0")
    assert (code, seen) == (5, {})
    assert "MASTER_ADDR, MASTER_PORT is not set" in capsys.readouterr().err
