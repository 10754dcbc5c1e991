"""Which node this is, from every source, and what is said when nothing says it."""

import socket
import subprocess
import sys

import pytest

from tests.integration.jobs import HARDWARE
from vlmrun.cluster import node
from vlmrun.cluster.node import ALONE, Node, first_host
from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import LaunchError

SLURM = {
    "SLURM_JOB_ID": "1234567", "SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "gpu[03-04,9]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
}  # fmt: skip


def here(env, **changes):
    return node.here(HardwareConfig.model_validate(HARDWARE | {"nodes": 3, "launcher": "torchrun"} | changes), env)


def test_one_node_looks_at_nothing():
    assert here({"NODE_RANK": "7"}, nodes=1) == ALONE


def test_variables_say_it():
    env = {"NODE_RANK": "2", "MASTER_ADDR": "gpu1"}
    assert here(env) == Node(2, "gpu1", 29500, 3)
    assert here(env | {"MASTER_PORT": "4711"}) == Node(2, "gpu1", 4711, 3)
    assert here(env | SLURM) == Node(2, "gpu1", 29500, 3)


def test_a_host_file_says_it_by_our_name(tmp_path):
    file = tmp_path / "hosts"
    file.write_text(f"first slots=8\n{socket.gethostname()} slots=8\nthird slots=8\n")
    assert here({}, hostfile=str(file)) == Node(1, "first", 29500, 3)
    file.write_text("first slots=8\n")
    with pytest.raises(LaunchError, match="does not name this computer"):
        here({}, hostfile=str(file))


def test_a_task_of_srun_is_a_node():
    assert here(SLURM) == Node(1, "gpu03", 24567, 3)


def test_the_srun_launcher_needs_no_node_but_this():
    assert here({}, launcher="srun") == Node(0, socket.gethostname(), 0, 1)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "nothing says which of them this is"),
        ({"NODE_RANK": "1"}, "NODE_RANK is set, but MASTER_ADDR is not"),
        ({"MASTER_ADDR": "a"}, "MASTER_ADDR is set, but NODE_RANK is not"),
        ({"NODE_RANK": "3", "MASTER_ADDR": "a"}, "this is node 3, but hardware.nodes is 3"),
        ({"NODE_RANK": "-1", "MASTER_ADDR": "a"}, "NODE_RANK='-1' is not a whole number"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({"SLURM_JOB_ID": "5"}, "the batch script of a SLURM job"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x3)"}, "more than one vlmrun on each node"),
    ],
)
def test_what_is_missing_or_wrong_is_said(env, told):
    with pytest.raises(LaunchError, match=told) as error:
        here(env)
    assert error.value.problems[0].fix


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[003-007,9],x1", "n003"),
        ("n[5]", "n5"),
        ("n[5,7]-ib", "n5-ib"),
        ("a-1,b[2-3]", "a-1"),
    ],
)
def test_the_first_host_of_a_list_of_slurm(listed, first):
    assert first_host(listed) == first


def test_commands_of_a_host_file_quote_what_a_shell_would_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    hardware = HardwareConfig.model_validate(HARDWARE | {"nodes": 2, "hostfile": "hosts"})
    script = "\n".join(node.commands(hardware, ["+recipe=smoke", "name=a b", "x=[1,2]", "y='$(reboot)'"]))
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/sh\necho "$1: $2" >> said-$1\n[ $1 = a ] || exit 7\n')
    fake.chmod(0o755)
    done = subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert done.returncode == 7
    words = f"MASTER_ADDR=a MASTER_PORT=29500 {sys.executable} -m vlmrun.cli +recipe=smoke"
    for rank, host in enumerate("ab"):
        said = (tmp_path / f"said-{host}").read_text()
        assert said.startswith(f"{host}: cd {tmp_path} && NODE_RANK={rank} {words}")
        assert "'name=a b' 'x=[1,2]' 'y='\"'\"'$(reboot)'\"'\"''" in said


@pytest.mark.parametrize(
    ("env", "launcher"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "torchrun"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "8"}, "deepspeed"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun"),
    ],
)
def test_one_of_several_copies_says_what_it_is(env, launcher):
    with pytest.raises(LaunchError, match=rf"this is copy \d of \d that .*{launcher}.* has started"):
        here(env, nodes=1)


@pytest.mark.parametrize(
    "env",
    [
        {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "a"},  # of a Kubernetes job: one pod each
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_copy_by_itself_runs(env):
    assert here(env, nodes=1) == node.ALONE
