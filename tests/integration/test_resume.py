"""Killed, damaged, full, interrupted: the next start goes on and ends where an undisturbed run ends, bit for bit."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import execute, make_job, rows, said, weights
from tests.integration.ranks import RankError

pytestmark = pytest.mark.ranks

# Dropout draws random numbers in every step, so a resume that restored them wrongly would show.
CHANGES = {
    "max_steps": 9,
    "save_steps": 3,
    "tune": {"llm": "lora", "tower": "freeze", "connector": "full"},
    "lora": {"r": 4, "alpha": 8.0, "dropout": 0.2, "targets": "all-linear", "bias": "none", "modules_to_save": []},
}


def _job(folder, name, n=1, **changes):
    return make_job(folder, name, ranks_per_node=n, **(CHANGES | changes))


def _finish(job, n=1):
    return forked.run(execute, n, job.to_json(), group=n > 1)[0]


def _steps(job):
    return sorted(path.name for path in (job.path / "checkpoints").iterdir())


def _same(undisturbed, resumed):
    assert rows(resumed) == rows(undisturbed)
    assert weights(resumed) == weights(undisturbed)


def _killed_at(text: str, where: str, rank: int) -> None:
    """Runs a job and kills its process at a chosen point of the checkpoint of step 6."""
    import torch.distributed

    from vlmrun import artifact
    from vlmrun.train import loop
    from vlmrun.train.checkpoint import commit
    from vlmrun.weights import native

    here = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    def die(*_arguments, **_named):
        os.kill(os.getpid(), signal.SIGKILL)

    def deadly(module, name, when):
        original = getattr(module, name)

        def wrapped(*arguments, **named):
            if when(*arguments):
                die()
            return original(*arguments, **named)

        setattr(module, name, wrapped)

    if here == rank:
        at_six = lambda folder, *_: "step-6" in str(folder)  # noqa: E731
        points = {
            "in step 5": (loop, "seed", lambda _number, step, _rank: step == 4),
            "before writing": (commit, "draft", lambda _folder, step, *_: step == 6),
            "before the manifest": (commit, "_describe", at_six),
            "in the manifest": (artifact, "write_json", lambda path, _: "step-6" in str(path)),
            "after the rename": (artifact, "fsync_folder", lambda folder: (folder / "step-6").exists()),
            "in the export": (native, "save", lambda *_: True),
        }
        deadly(*points[where])
    execute(text)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    job = _job(folder, "undisturbed")
    _finish(job)
    return folder, job


POINTS = ["in step 5", "before writing", "before the manifest", "in the manifest", "after the rename", "in the export"]


@pytest.mark.parametrize("where", POINTS)
def test_killed_at_any_moment(undisturbed, where):
    folder, reference = undisturbed
    job = _job(folder, where.replace(" ", "-"))
    with pytest.raises(RankError, match="died without a word"):
        forked.run(_killed_at, 1, job.to_json(), where, 0, group=False)
    resumed_from = {"after the rename": 6, "in the export": 9}.get(where, 3)
    _finish(job)
    assert f"goes on from step {resumed_from} of 9" in said(job)
    _same(reference, job)
    assert _steps(job) == ["step-6", "step-9"], "no leftovers"


def test_killed_by_the_clock(undisturbed):
    folder, reference = undisturbed
    job = _job(folder, "clock")
    process = forked.spawn(execute, job.to_json())
    metrics = job.path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text("utf-8").count("\n") >= 4):
        time.sleep(0.001)
    process.kill()
    process.join()
    _finish(job)
    _same(reference, job)


@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_two_ranks_resume_bit_for_bit(tmp_path, zero, precision):
    changes = {"zero": zero, "precision": precision, "max_steps": 5, "save_steps": 2, "micro_batch": 1}
    reference = _job(tmp_path, "undisturbed", 2, **changes)
    _finish(reference, 2)
    job = _job(tmp_path, "stopped", 2, **changes)
    _finish(job, 2)
    for name in ("checkpoints/step-5", "weights"):  # as a kill after step 5's row would have left it
        (job.path / name).rename(tmp_path / name.replace("/", "-"))
    _finish(job, 2)
    assert "goes on from step 4 of 5" in said(job)
    _same(reference, job)


def test_a_rank_that_dies_in_the_save_leaves_no_checkpoint(tmp_path):
    """Platform T11: DeepSpeed alone would call a checkpoint whose shard is missing the latest."""
    job = _job(tmp_path, "torn", 2, zero=2)
    with pytest.raises(RankError, match=r"LaunchError: error: rank 0 lost another rank"):
        forked.run(_killed_at, 2, job.to_json(), "before the manifest", 1)
    assert [name for name in _steps(job) if name.startswith("step")] == ["step-3"]
    reference = _job(tmp_path, "undisturbed", 2, zero=2)
    _finish(reference, 2)
    _finish(job, 2)
    assert "goes on from step 3 of 9" in said(job)
    _same(reference, job)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "manifest"])
@pytest.mark.parametrize("engine", ["deepspeed", "plain"])
def test_a_damaged_checkpoint_is_said_aloud_and_the_one_before_taken(tmp_path, damage, engine):
    """Platform T12: flipped bytes load without complaint, and the loss becomes nan."""
    job = _job(tmp_path, "damaged", engine=engine)
    _finish(job)
    finished = rows(job), weights(job)
    newest = job.path / "checkpoints" / "step-9"
    files = sorted((p for p in newest.rglob("*.pt")), key=lambda p: p.stat().st_size)
    if damage == "flipped":
        _flip(files[-1])
    elif damage == "truncated":
        files[-1].write_bytes(files[-1].read_bytes()[:-100])
    elif damage == "missing":
        files[-1].unlink()
    else:
        (newest / "MANIFEST.json").unlink()
    _finish(job)
    assert "step-9 is damaged" in said(job)
    assert "goes on from step 6 of 9" in said(job)
    assert (rows(job), weights(job)) == finished


def test_all_damaged_begins_again_aloud(tmp_path):
    job = _job(tmp_path, "damaged", engine="plain")
    _finish(job)
    finished = rows(job), weights(job)
    for path in (job.path / "checkpoints").glob("*/state.pt"):
        _flip(path)
    _finish(job)
    assert "no checkpoint" in said(job)
    assert "training starts from the beginning" in said(job)
    assert (rows(job), weights(job)) == finished


@pytest.mark.parametrize(
    ("change", "text"),
    [({"zero": 1}, "engine: 'ZeRO-2' then, 'ZeRO-1' now"), ({"engine": "plain"}, "engine: 'ZeRO-2' then, 'plain' now")],
)
def test_a_checkpoint_of_another_layout_is_refused(tmp_path, change, text):
    job = _job(tmp_path, "layout", zero=2)
    _finish(job)
    other = make_job(tmp_path, "layout", **(CHANGES | change))
    with pytest.raises(RankError, match=rf"CheckpointError.*{text}"):
        _finish(other)


def test_other_frozen_weights_are_refused(tmp_path):
    """Frozen weights are not in a checkpoint; if the base changed under it, it must not go on."""
    from tests.pico import pico_tower

    job = _job(tmp_path, "frozen", engine="plain")
    _finish(job)
    pico_tower(tmp_path / "parts" / "tower", seed=99)
    with pytest.raises(RankError, match=r"CheckpointError.*frozen"):
        _finish(job)


def _with_small_files(text: str, limit: int) -> None:
    """As on a disk that fills up while a checkpoint is written."""
    import resource

    from vlmrun.train.checkpoint import commit

    original = commit.draft

    def draft(folder, step, write, **how):
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return original(folder, step, write, **how)

    commit.draft = draft
    execute(text)


@pytest.mark.parametrize("engine", ["deepspeed", "plain"])
def test_a_disk_that_fills_while_saving_loses_nothing(undisturbed, engine):
    folder, reference = undisturbed
    job = _job(folder, f"full-{engine}", engine=engine)
    with pytest.raises(RankError, match=r"(?s)CheckpointError.*step 6 cannot be written.*step 3 is untouched"):
        forked.run(_with_small_files, 1, job.to_json(), 2000, group=False)
    assert _steps(job) == ["step-3"], "no half-written folder stays"
    _finish(job)
    assert "goes on from step 3 of 9" in said(job)
    if engine == "deepspeed":
        _same(reference, job)


def _with_free_bytes(text: str, n_bytes: int) -> None:
    import shutil

    shutil.disk_usage = lambda _: type("Usage", (), {"free": n_bytes})()
    execute(text)


def test_a_disk_too_full_to_begin_is_found_before_writing(tmp_path):
    job = _job(tmp_path, "full", 2)
    with pytest.raises(RankError, match=r"CheckpointError.*step 3 cannot be written: about 2 MB are needed, 0 MB"):
        forked.run(_with_free_bytes, 2, job.to_json(), 1000)
    assert _steps(job) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_same_command_goes_on(undisturbed, number):
    folder, reference = undisturbed
    job = _job(folder, f"signal-{number}")
    with pytest.raises(RankError, match=r"LaunchError.*stopped at step 5; checkpoint saved; the same command resumes"):
        forked.run(_signalled, 1, job.to_json(), int(number), 0, group=False)
    assert "step-5" in _steps(job)
    _finish(job)
    assert "goes on from step 5 of 9" in said(job)
    _same(reference, job)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    job = _job(tmp_path, "signal", 2)
    with pytest.raises(RankError, match="stopped at step 5; checkpoint saved"):
        forked.run(_signalled, 2, job.to_json(), int(signal.SIGTERM), 1)
    assert "step-5" in _steps(job)


def _signalled(text: str, number: int, rank: int) -> None:
    from vlmrun.train import dist, loop

    original = loop.seed

    def seed(stage_seed, step, here):
        if step == 4 and dist.rank() == rank:
            os.kill(os.getpid(), number)
        original(stage_seed, step, here)

    loop.seed = seed
    execute(text)


def test_save_total_limit_is_kept(tmp_path):
    job = _job(tmp_path, "limit", save_steps=1, save_total_limit=3, max_steps=6)
    _finish(job)
    assert _steps(job) == ["step-4", "step-5", "step-6"]


def test_a_finished_training_is_not_repeated(tmp_path):
    job = _job(tmp_path, "finished")
    _finish(job)
    before = (job.path / "metrics.jsonl").read_text("utf-8")
    summary = _finish(job)
    assert (job.path / "metrics.jsonl").read_text("utf-8") == before
    assert summary["steps"] == 9
    assert summary["loss"] == json.loads(before.splitlines()[-1])["loss"]
