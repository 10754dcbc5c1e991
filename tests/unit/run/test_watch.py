"""Who died, who hangs, and when a job is started again: with processes that only pretend to train."""

import json
import os
import subprocess
import sys
import time

import pytest

from vlmrun import heartbeat
from vlmrun.errors import CheckpointError, LaunchError, VlmrunError
from vlmrun.run import argv, launch
from vlmrun.run.watch import Watch


@pytest.fixture
def training(job):
    made = job("pretrain")
    hardware = made.hardware.model_copy(update={"hang_seconds": 1, "timeout_seconds": 50, "max_restarts": 3})
    return made.model_copy(update={"hardware": hardware})


def beats(job, *ranks):
    """Writes beats of (rank, step, phase, seconds ago, slowest piece of work), all of this process or of `pid`."""
    folder = job.path / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for rank, step, phase, ago, slowest, pid in ranks:
        beat = heartbeat.Beat(rank, os.uname().nodename, pid, step, phase, time.monotonic() - ago, slowest)
        (folder / f"heartbeat-{rank}.json").write_text(json.dumps(vars(beat)))


def hung(job, *ranks):
    watch = Watch(job)
    beats(job, *((*rank, os.getpid()) for rank in ranks))
    watch.look()
    return watch


@pytest.mark.parametrize(
    ("beat", "hangs"),
    [
        ((0, 5, "forward", 0.5, 0.1), False),
        ((0, 5, "forward", 1.5, 0.1), True),
        ((0, 5, "forward", 1.5, 0.9), False),  # three times as long as the slowest so far is still allowed
        ((0, 5, "forward", 3.0, 0.9), True),
        ((0, 1, "forward", 40.0, None), False),  # of a first step nothing is known
        ((0, 1, "forward", 51.0, None), True),
        ((0, 5, "save", 40.0, 0.1), False),
        ((0, 5, "save", 51.0, 0.1), True),
        ((0, 0, "load", 40.0, None), False),
        ((0, 0, "load", 51.0, None), True),
        ((0, 9, "left", 99.0, 0.1), False),
    ],
)
def test_what_counts_as_hanging(training, beat, hangs):
    assert (hung(training, beat).hung is not None) == hangs


def test_who_may_take_long_is_named_once_before_it_is_ended(training, caplog):
    """A collective that hangs in the first step would else be noticed after half an hour."""
    (training.path / "logs").mkdir(parents=True)
    (training.path / "logs" / "rank-1.log").write_text("the last line")
    watch = hung(training, (0, 1, "backward", 1.2, None), (1, 1, "forward", 1.4, None))
    for _ in range(3):
        watch.look()
    (said,) = caplog.messages
    assert watch.hung is None
    assert said.startswith("rank 1: no progress for 1 s in step 1 (forward); it is ended after 50 s")
    assert said.endswith("the last line")
    beats(training, (1, 1, "backward", 1.3, None, os.getpid()))
    watch.look()
    assert len(caplog.messages) == 2, "who is slow in another piece of work is named again"


def test_who_is_slow_in_time_is_not_named(training, caplog):
    hung(training, (0, 1, "backward", 0.5, None), (1, 0, "load", 0.9, None))
    hung(training, (0, 5, "forward", 1.5, 0.1))  # it hangs, which is told with the error
    assert caplog.messages == []


def test_nobody_hangs_when_it_is_turned_off(training):
    off = training.model_copy(update={"hardware": training.hardware.model_copy(update={"hang_seconds": None})})
    assert hung(off, (0, 5, "forward", 999.0, 0.1)).hung is None


def test_the_rank_furthest_behind_is_named_with_the_others_and_its_last_words(training):
    (training.path / "logs").mkdir(parents=True)
    (training.path / "logs" / "rank-1.log").write_text("".join(f"line {number}\n" for number in range(9)))
    watch = hung(training, (0, 6, "forward", 3.0, 0.1), (1, 5, "backward", 2.9, 0.1), (2, 6, "forward", 3.1, 0.1))
    said = str(watch.hangs())
    assert "rank 1 hangs: no progress for 3 s in step 5 (backward); all ranks were ended" in said
    assert "rank 0: 3 s in step 6 (forward)" in said
    assert "line 8" in said
    assert "line 3" not in said
    assert "hardware.hang_seconds" in said


def test_ranks_that_wait_for_a_slow_tracker_do_not_hang(training):
    waiting = (1, 6, "backward", 2.9, 0.1)
    assert hung(training, (0, 5, "track", 3.0, 0.1), waiting).hung is None
    late = hung(training, (0, 5, "track", 51.0, 0.1), waiting).hung
    assert (late.rank, late.phase) == (0, "track")


def test_the_first_rank_that_is_gone_without_leaving_is_the_one_that_died(training):
    gone = subprocess.Popen(["true"])
    gone.wait()
    watch = Watch(training)
    beats(training, (0, 4, "forward", 0, 0.1, os.getpid()), (1, 4, "update", 0, 0.1, gone.pid))
    watch.look()
    beats(training, (0, 4, "forward", 0, 0.1, gone.pid))
    watch.look()
    assert [beat.rank for beat in watch.dead] == [1]
    assert "rank 1 died in step 4 (update)" in str(watch.died("died"))
    beats(training, (0, 4, "left", 0, 0.1, gone.pid))
    watch = Watch(training)
    watch.look()
    assert watch.dead == []


def test_who_is_dead_does_not_hang_and_who_waits_for_them_is_not_blamed(training, monkeypatch, tmp_path):
    """A launcher may take its time to notice; the job is ended then, and the dead rank is the one to hear of."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    watch = Watch(training)
    beats(training, (0, 4, "forward", 0, 0.1, os.getpid()), (1, 4, "update", 30, 0.1, gone.pid))
    watch.look()
    assert watch.hung is None
    once = training.model_copy(update={"hardware": training.hardware.model_copy(update={"max_restarts": 0})})
    code = (
        AT
        + f"""
at(1); at(2)
beat = heartbeat.Beat(1, os.uname().nodename, {gone.pid}, 2, "backward", time.monotonic(), 0.1)
(pathlib.Path(folder) / "logs" / "heartbeat-1.json").write_text(json.dumps(vars(beat)))
time.sleep(60)
"""
    )
    with pytest.raises(LaunchError, match=r"rank 1 died in step 2 \(backward\)"):
        run(once, monkeypatch, tmp_path, code)


def run(job, monkeypatch, tmp_path, code):
    """Launches a worker of this Python code; `attempt` is known in it, and the folder."""
    folder = str(job.path)

    def command(job, port, visible, attempt, node):
        return [sys.executable, "-c", f"attempt = {attempt}\nfolder = {folder!r}\n{code}"]

    monkeypatch.setattr(argv, "command", command)
    with (tmp_path / "lock").open("w") as lock:
        launch.run(job, lock.fileno())


AT = """
import os, pathlib, signal, sys, time, json
from vlmrun import heartbeat
heartbeat.start(pathlib.Path(folder) / "logs", 0)
def at(step):
    heartbeat.beat("forward", step)
    time.sleep(0.1)
def fail(kind, what, reason=None):
    left = {"type": kind, "problems": [{"what": what}], "reason": reason}
    (pathlib.Path(folder) / "failure.json").write_text(json.dumps(left))
    sys.exit(5)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_rank_that_died_is_started_again_until_it_is_done(training, monkeypatch, tmp_path, caplog):
    run(training, monkeypatch, tmp_path, AT + "at(3 + attempt)\nif attempt < 2: die()\nheartbeat.stop()")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "rank 0 was killed by SIGKILL in step 3 (forward)" in said[0]
    assert "restart 1 of 3" in said[0]
    assert "in step 4" in said[1]


def test_a_run_that_fails_in_the_same_step_stops_early(training, monkeypatch, tmp_path):
    with pytest.raises(LaunchError, match="it failed in step 7 both times, so it is not started again"):
        run(training, monkeypatch, tmp_path, AT + "at(7)\ndie()")


def test_before_the_first_step_all_restarts_are_used(training, monkeypatch, tmp_path, caplog):
    with pytest.raises(LaunchError, match="after 3 restarts"):
        run(training, monkeypatch, tmp_path, AT + "heartbeat.beat('load')\ndie()")
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("kind", "reason", "error"),
    [("CheckpointError", None, CheckpointError), ("LaunchError", "stopped", LaunchError)],
)
def test_what_another_start_cannot_mend_is_not_started_again(
    training, monkeypatch, tmp_path, caplog, kind, reason, error
):
    with pytest.raises(error, match="any words"):
        run(training, monkeypatch, tmp_path, AT + f"at(2)\nfail({kind!r}, 'any words', {reason!r})")
    assert not caplog.records


def test_what_nobody_foresaw_is_started_again(training, monkeypatch, tmp_path):
    with pytest.raises(VlmrunError, match="CUDA error"):
        run(training, monkeypatch, tmp_path, AT + "at(2)\nfail('VlmrunError', 'CUDA error')")


def test_a_hanging_rank_is_ended_even_if_it_ignores_every_signal_it_can(training, monkeypatch, tmp_path):
    code = (
        AT
        + """
import faulthandler
faulthandler.register(signal.SIGUSR2, open(pathlib.Path(folder) / "logs" / "stack-0.txt", "w"))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
at(1); at(2); at(3)
time.sleep(60)
"""
    )
    began = time.monotonic()
    once = training.model_copy(update={"hardware": training.hardware.model_copy(update={"max_restarts": 0})})
    with pytest.raises(LaunchError, match=r"rank 0 hangs: no progress for \d s in step 3"):
        run(once, monkeypatch, tmp_path, code)
    assert time.monotonic() - began < 20
    assert "line 2" in (training.path / "logs" / "stack-0.txt").read_text()


def test_a_rank_of_a_busy_machine_is_left_the_time_to_write_where_it_stands(training, monkeypatch, tmp_path):
    code = (
        AT
        + """
stack = pathlib.Path(folder) / "logs" / "stack-0.txt"
def slowly(*_):
    time.sleep(2)
    stack.write_text("here")
signal.signal(signal.SIGUSR2, slowly)
at(1); at(2); at(3)
time.sleep(60)
"""
    )
    once = training.model_copy(update={"hardware": training.hardware.model_copy(update={"max_restarts": 0})})
    with pytest.raises(LaunchError, match="rank 0 hangs"):
        run(once, monkeypatch, tmp_path, code)
    assert (training.path / "logs" / "stack-0.txt").read_text() == "here"


def test_sigusr1_reaches_the_ranks(training, monkeypatch, tmp_path):
    code = (
        AT
        + """
signal.signal(signal.SIGUSR1, lambda *_: (pathlib.Path(folder) / "asked").touch())
at(1)
os.kill(os.getppid(), signal.SIGUSR1)
for _ in range(100):
    time.sleep(0.05)
    if (pathlib.Path(folder) / "asked").exists():
        heartbeat.stop()
        sys.exit(0)
"""
    )
    run(training, monkeypatch, tmp_path, code)
    assert (training.path / "asked").exists()


def test_sigusr1_before_a_rank_trains_ends_nobody(training, monkeypatch, tmp_path):
    run(training, monkeypatch, tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)")
