"""Host files and environment variables: what is let through and what is refused."""

import pytest

from tests.integration.jobs import HARDWARE
from vlmrun.checks import environment, hardware, table
from vlmrun.cluster import hostfile
from vlmrun.config.schema import HardwareConfig, RunConfig


def problems(**changes):
    run = RunConfig.model_construct(hardware=HardwareConfig.model_validate(HARDWARE | changes), only=[], stage={})
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
             "CUDA_DEVICE_MAX_CONNECTIONS", "OMP_PROC_BIND"],
)  # fmt: skip
def test_variables_that_tune_are_let_through(name):
    assert list(environment.check({name: 1})) == []


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PYTHONPATH", "PATH", "HF_HUB_OFFLINE", "nccl_debug", "NCCL_NET_PLUGIN", "NCCL_TOPO_FILE",
             "CUDA_INJECTION64_PATH", "TORCH_EXTENSIONS_DIR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_A=B", "",
             "OMP_TOOL_LIBRARIES", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_LOGS_OUT_FILE", "NCCL_HOSTID_HOME"],
)  # fmt: skip
def test_variables_that_load_code_or_reach_files_are_refused(name):
    assert len(list(environment.check({name: 1}))) == 1


def test_a_value_is_one_line_of_text():
    assert "cannot be printed" in next(environment.check({"NCCL_DEBUG": "INFO\nLD_PRELOAD=x"})).what
