import os

import pytest
import torch

from tests.integration.jobs import HARDWARE
from vlmrun.config.schema import HardwareConfig
from vlmrun.errors import LaunchError
from vlmrun.train import dist


def _hardware(**changes):
    return HardwareConfig.model_validate(HARDWARE | changes)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "DS_ACCELERATOR",
        "TORCHDYNAMO_DISABLE",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_one_process_is_a_world_of_one_and_leaves_nothing():
    with dist.session(_hardware()):
        assert (dist.rank(), dist.world(), dist.is_main()) == (0, 1, True)
        assert torch.distributed.get_backend() == "gloo"
        assert dist.all_reduce(torch.tensor([3.0])).item() == 3.0
        assert dist.gather_objects("a") == ["a"]
        assert dist.broadcast_object({"b": 1}) == {"b": 1}
        assert os.environ["DS_ACCELERATOR"] == "cpu"
        assert torch.get_num_threads() == 1
    assert not torch.distributed.is_initialized()
    assert (dist.rank(), dist.world()) == (0, 1)


def test_the_group_is_left_when_something_raises():
    with pytest.raises(KeyError), dist.session(_hardware()):
        raise KeyError("x")
    assert not torch.distributed.is_initialized()


def test_a_wrong_number_of_ranks_is_refused():
    with (
        pytest.raises(LaunchError, match="1 ranks were started, 4 are configured"),
        dist.session(_hardware(nodes=2, ranks_per_node=2)),
    ):
        pass
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_told():
    with pytest.raises(LaunchError, match="no GPU is visible"), dist.session(_hardware(gpu="a100_80g")):
        pass
    with pytest.raises(LaunchError, match="no GPU is visible"):
        dist.device(_hardware(gpu="a100_80g"))


def test_errors_of_our_own_are_not_taken_for_a_lost_rank():
    with pytest.raises(RuntimeError, match="timed out"), dist.session(_hardware()):
        raise RuntimeError("timed out")  # one rank has nobody to lose


@pytest.mark.parametrize("on", [True, False])
def test_tensor_float_32_is_used_where_asked_for_and_nowhere_else(on):
    """Torch's own choice is to use it for convolutions and not for products."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        dist.prepare(_hardware(tf32=on))
        assert [switch.allow_tf32 for switch in switches] == [on, on]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


@pytest.mark.parametrize(
    "said",
    [
        "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:51234",
        "[../gloo/transport/tcp/pair.cc:534] writev [127.0.0.1]:51234: Broken pipe",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    ],
)
def test_words_of_a_lost_rank_are_known(monkeypatch, said):
    assert not dist.lost_a_rank(RuntimeError(said)), "one rank has nobody to lose"
    monkeypatch.setattr(dist, "world", lambda: 2)
    assert dist.lost_a_rank(RuntimeError(said))
    assert not dist.lost_a_rank(RuntimeError("CUDA out of memory"))
