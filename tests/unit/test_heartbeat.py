"""Signs of progress: written by the main thread, read by another process."""

import errno
import os
import time

import pytest

from vlmrun import heartbeat
from vlmrun.heartbeat import Heart


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_last_beat_of_every_rank_is_read_in_order(tmp_path, clock):
    hearts = [Heart(tmp_path, rank) for rank in (1, 0)]
    hearts[0].beat("backward", 7)
    hearts[1].beat("a phase with a very long name", 7)
    clock[0] = 103.5
    hearts[1].beat("save")
    first, second = heartbeat.read(tmp_path)
    assert (first.rank, first.step, first.phase, first.at, first.pid) == (0, 7, "save", 103.5, os.getpid())
    assert (second.rank, second.place) == (1, "in step 7 (backward)")
    hearts[0].close()
    assert heartbeat.read(tmp_path)[1].phase == heartbeat.LEFT
    heartbeat.clear(tmp_path)
    assert heartbeat.read(tmp_path) == []


def test_the_slowest_piece_of_work_is_known_once_a_step_is_over_and_the_first_is_forgotten(tmp_path, clock):
    heart = Heart(tmp_path, 0)
    heart.beat("load")
    clock[0] += 500

    def step(number, seconds):
        heart.beat("forward", number)
        clock[0] += seconds
        heart.beat("save")  # however long that takes, it is no work of a step
        clock[0] += 1000

    def slowest():
        return heartbeat.read(tmp_path)[0].slowest

    step(1, 40)
    assert slowest() is None, "nothing to compare with yet"
    step(2, 3)
    assert slowest() == 40
    step(3, 5)
    assert slowest() == 3
    step(4, 1)
    assert slowest() == 5
    step(5, 1)
    assert slowest() == 5


def test_on_a_full_disk_nobody_is_watched(tmp_path, monkeypatch):
    heart = Heart(tmp_path, 0)
    heart.beat("forward", 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    heart.beat("backward")
    assert heartbeat.read(tmp_path) == []


def test_beats_of_other_machines_and_torn_ones_are_passed_over(tmp_path, monkeypatch):
    Heart(tmp_path, 0).beat("load")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    Heart(tmp_path, 1).beat("load")
    (tmp_path / "heartbeat-2.json").write_text('{"rank": 2, "ho')
    assert [beat.rank for beat in heartbeat.read(tmp_path)] == [1]


def test_a_process_that_is_not_watched_leaves_nothing(tmp_path):
    heartbeat.beat("forward", 3)
    heartbeat.start(tmp_path, 0)
    heartbeat.beat("forward", 3)
    heartbeat.stop()
    heartbeat.beat("forward", 4)
    (left,) = heartbeat.read(tmp_path)
    assert (left.phase, left.step) == (heartbeat.LEFT, 3)
