"""The fixture itself: without it no two-rank test means anything."""

import os
import signal
import sys
import time

import pytest

from tests.integration import ranks as forked
from tests.integration.ranks import RankError

pytestmark = pytest.mark.ranks


def _sum(value):
    import torch
    import torch.distributed

    tensor = torch.tensor([value + torch.distributed.get_rank()])
    torch.distributed.all_reduce(tensor)
    return int(tensor), "deepspeed" in sys.modules, "vlmrun.stages.train" in sys.modules


def _raise_on_one():
    import torch.distributed

    if torch.distributed.get_rank() == 1:
        raise ValueError("broken on purpose")


def _die_on_one():
    import torch.distributed

    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def _sleep():
    time.sleep(60)


def test_ranks_are_real_and_everything_is_preloaded(ranks):
    assert ranks(_sum, 2, 20) == [(41, True, True)] * 2


def test_a_traceback_comes_back(ranks):
    with pytest.raises(RankError, match=r"(?s)rank 1:.*_raise_on_one.*broken on purpose"):
        ranks(_raise_on_one, 2)


def test_a_dead_rank_is_noticed(ranks):
    began = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 died without a word \(exit code -9\)"):
        ranks(_die_on_one, 2)
    assert time.monotonic() - began < 20  # far below the group's time-out of 30 s


def test_a_hang_is_noticed(ranks):
    with pytest.raises(RankError, match=r"ranks \[0, 1\] neither finished nor failed"):
        forked.run(_sleep, 2, timeout=1.0)
