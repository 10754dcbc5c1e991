"""Host files and environment variables: what is let through and what is refused."""

import pytest

from tests.integration.jobs import HARDWARE
from vlmrun.checks import environment, hardware, table
from vlmrun.cluster import hostfile
from vlmrun.config.schema import HardwareConfig, RunConfig


def problems(**changes):
    run = RunConfig.model_construct(
        hardware=HardwareConfig.model_validate(HARDWARE | changes), only=[], stage={}, tracking=[]
    )
    return [f"{p.where}: {p.what} | {p.fix}" for p in table.problems(hardware.RULES, run)]


def test_hosts_are_read_in_order_with_their_slots(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# two nodes\n\ngpu-1.example slots=8\n10.0.0.2  slots = 4  # the small one\n")
    assert hostfile.read(str(file)) == ([hostfile.Host("gpu-1.example", 8), hostfile.Host("10.0.0.2", 4)], [])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a", "line 1: 'a' is no host"),
        ("a slots=0", "is no host"),
        ("a slots=2\nb;reboot slots=2", "line 2: 'b;reboot slots=2' is no host"),
        ("-oProxyCommand=x slots=2", "is no host"),
        ("a slots=1\na slots=1", "names a twice"),
        ("# nobody", "names no host"),
    ],
)
def test_a_damaged_host_file_is_told(tmp_path, text, told):
    file = tmp_path / "hosts"
    file.write_text(text)
    assert told in problems(hostfile=str(file), nodes=2)[0]


def test_hosts_must_be_as_many_as_nodes_with_room_for_their_ranks(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=1")
    where = str(file)
    assert problems(hostfile=where, nodes=2, ranks_per_node=1) == []
    assert "names 2 hosts, hardware.nodes is 3" in problems(hostfile=where, nodes=3)[0]
    assert problems(hostfile=where, nodes=2, ranks_per_node=2) == [
        "hardware.hostfile: b has 1 slots, hardware.ranks_per_node is 2 | as many slots as GPUs are used on each node"
    ]


@pytest.mark.parametrize(
    "name", ["NCCL_DEBUG", "NCCL_IB_DISABLE", "GLOO_SOCKET_IFNAME", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
             "CUDA_DEVICE_MAX_CONNECTIONS", "OMP_PROC_BIND", "NCCL_P2P_DIRECT_DISABLE"],
)  # fmt: skip
def test_variables_that_tune_are_let_through(name):
    assert list(environment.check({name: 1})) == []


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PYTHONPATH", "PATH", "HF_HUB_OFFLINE", "nccl_debug", "NCCL_NET_PLUGIN", "NCCL_TOPO_FILE",
             "CUDA_INJECTION64_PATH", "TORCH_EXTENSIONS_DIR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_A=B", "",
             "OMP_TOOL_LIBRARIES", "OMP_TOOL", "PYTHONSTARTUP", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "NCCL_TUNER_PLUGIN",
             "HF_HUB_TRUST_REMOTE_CODE", "TORCH_DEVICE_BACKEND_AUTOLOAD", "NCCL_COMM_ID", "NCCL_RAS_ADDR",
             "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_LOGS_OUT_FILE", "NCCL_HOSTID_HOME", "CUDA_MPS_LOG_DIRECTORY"],
)  # fmt: skip
def test_variables_that_load_code_or_reach_files_are_refused(name):
    assert len(list(environment.check({name: 1}))) == 1


def test_a_value_is_one_line_of_text():
    assert "cannot be printed" in next(environment.check({"NCCL_DEBUG": "INFO\nLD_PRELOAD=x"})).what


def test_one_node_names_no_interface_and_several_may():
    named = {"env": {"GLOO_SOCKET_IFNAME": "eth0"}}
    assert "loopback" in problems(**named)[0]
    assert problems(**named, nodes=2) == []


def shell(env, tracking=(), **changes):
    made = HardwareConfig.model_validate(HARDWARE | changes)
    run = RunConfig.model_construct(hardware=made, tracking=list(tracking), only=[], stage={})
    return [problem.fix for problem in environment.shell(run, env)], environment.without_effect(run, env)


@pytest.mark.parametrize(
    ("tracking", "env", "fix"),
    [
        (["wandb"], {"WANDB_MODE": "online"}, "tracking=[wandb_online], or unset WANDB_MODE"),
        (["wandb_online"], {"WANDB_MODE": "offline"}, "tracking=[wandb], or unset WANDB_MODE"),
        (["wandb"], {"WANDB_MODE": "disabled"}, "tracking=[], or unset WANDB_MODE"),
        (["wandb"], {"WANDB_DISABLED": "true"}, "tracking=[], or unset it"),
        (["wandb", "wandb_online"], {}, "tracking=[wandb], or tracking=[wandb_online]"),
    ],
)
def test_a_shell_that_says_something_else_is_refused(tracking, env, fix):
    assert shell(env, tracking)[0] == [fix]


def test_a_shell_that_agrees_is_no_problem():
    named = {"WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_MODE": "offline", "TENSORBOARD_DIR": "/tmp/t"}
    assert shell(named, ["wandb", "tensorboard"]) == ([], [])
    assert shell({"WANDB_MODE": "disabled"}) == ([], [])


def test_a_variable_without_effect_is_named():
    assert "WANDB_PROJECT has no effect" in shell({"WANDB_PROJECT": "p"})[1][0]
    assert "TENSORBOARD_DIR has no effect" in shell({"TENSORBOARD_DIR": "t"}, ["wandb"])[1][0]
    assert "WANDB_DIR has no effect" in shell({"WANDB_DIR": "t"}, ["wandb"])[1][0]


def test_threads_of_the_shell_that_are_not_those_of_the_configuration_are_named():
    assert "(hardware.threads=7)" in shell({"OMP_NUM_THREADS": "7"}, threads=2)[1][0]
    assert "(hardware.threads=1)" in shell({"OMP_NUM_THREADS": "4,2"}, threads=2)[1][0]
    assert shell({"OMP_NUM_THREADS": "2"}, threads=2) == ([], [])


def test_fewer_gpus_than_ranks():
    assert shell({"CUDA_VISIBLE_DEVICES": "0,1"}, gpu="a100_80g", ranks_per_node=4)[0] == [
        "hardware.ranks_per_node=2, or show more GPUs"
    ]
    assert shell({"CUDA_VISIBLE_DEVICES": "0,1"}, gpu="a100_80g", ranks_per_node=2)[0] == []
    assert shell({"CUDA_VISIBLE_DEVICES": ""}, gpu="cpu", ranks_per_node=2)[0] == []
    assert shell({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, gpu="a100_80g", ranks_per_node=1)[0] == []
    for none in ("", "-1", "-1,0"):
        fixes = shell({"CUDA_VISIBLE_DEVICES": none}, gpu="a100_80g", ranks_per_node=1)[0]
        assert fixes == ["hardware=cpu, or show more GPUs"]
