import struct
import time

import pytest

from tests.integration.jobs import make_job
from vlmrun import heartbeat
from vlmrun.config.schema import Service
from vlmrun.train import services, trackers
from vlmrun.train.log import Row
from vlmrun.train.scores import Score


def _row(step):
    return Row(step, step / 10, 1.5, 1e-3, 2.0, 30, 100, 8, 0.1)


def _score(step):
    return Score(step, 0.5, None, 10, 4, 0.1)


class _Notes:
    def __init__(self):
        self.found = []

    def track(self, row):
        self.found.append(row.step)

    def evaluated(self, score):
        self.found.append(("eval", score.step))

    def close(self):
        self.found.append("closed")


def test_services_get_every_nth_row_the_last_one_and_all_evaluations():
    notes = _Notes()
    thinned = trackers.Thinned(notes, 2, 5)
    for step in range(1, 6):
        thinned.track(_row(step))
    thinned.evaluated(_score(3))
    thinned.close()
    assert notes.found == [2, 4, 5, ("eval", 3), "closed"]


class _Failing(_Notes):
    """A service that raises in one of its calls."""

    def __init__(self, where):
        super().__init__()
        self.where = where
        self.fail("open")

    def fail(self, where):
        if where == self.where:
            raise OSError(28, "No space left on device")

    def track(self, row):
        super().track(row)
        self.fail("track")

    def evaluated(self, score):
        super().evaluated(score)
        self.fail("evaluated")

    def close(self):
        super().close()
        self.fail("close")


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("open", None),
        ("track", [1, "closed"]),
        ("evaluated", [1, ("eval", 1), "closed"]),
        ("close", [1, ("eval", 1), 2, ("eval", 2), "closed"]),
    ],
)
def test_a_service_that_fails_costs_its_own_numbers_only(tmp_path, monkeypatch, caplog, where, given):
    made = []

    def service(name, *_):
        made.append(_Failing(where) if name == "wandb" else _Notes())
        return made[-1]

    monkeypatch.setattr(trackers, "_open", service)
    job = make_job(tmp_path, "tracked", tracking=["wandb", "tensorboard"])
    found = trackers.open_trackers(job, 1, 4, 0, [])
    for step in (1, 2):
        for tracker in found:
            tracker.track(_row(step))
        for tracker in found:
            tracker.evaluated(_score(step))
    trackers.close(found)
    *failing, other = made
    assert [one.found for one in failing] == ([] if given is None else [given])
    assert other.found == [1, ("eval", 1), 2, ("eval", 2), "closed"]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("wandb ")
    assert "No space left on device" in said
    assert len((job.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_all_are_closed_whatever_one_raises_and_a_slow_one_is_no_part_of_a_step(monkeypatch):
    beats = []
    monkeypatch.setattr(heartbeat, "beat", beats.append)
    notes = _Notes()
    with pytest.raises(OSError, match="No space left"):
        trackers.close([notes, _Failing("close"), notes])
    assert notes.found == ["closed", "closed"]
    assert beats == ["track"]
    assert "track" not in heartbeat.IN_A_STEP


def _records(file):
    """Records of a wandb file, which is a leveldb log: blocks of 32 KiB with pieces of records in them."""
    data, offset, piece = file.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7]) if left >= 7 else (0, 0, 0)
        if kind == 0:
            offset += left
            continue
        piece += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):
            yield piece
            piece = b""


def _logged(file):
    """The wandb run's id and project, and the steps at which a loss and an evaluation were logged."""
    from wandb.proto import wandb_internal_pb2 as protocol

    run, losses, scores = None, [], []
    for raw in _records(file):
        record = protocol.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "run":
            run = (record.run.run_id, record.run.project)
        if record.WhichOneof("record_type") == "history":
            names = {item.key or ".".join(item.nested_key) for item in record.history.item}
            losses += [record.history.step.num] * ("train/loss" in names)
            scores += [record.history.step.num] * ("eval/loss" in names)
    return run, losses, scores


OFFLINE = Service.model_validate({"tags": ["baseline"]})


@pytest.fixture
def job(tmp_path, monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    return make_job(tmp_path, "tracked", tracking=["wandb"])


def test_a_resumed_offline_run_is_complete_by_itself_and_hides_nothing(job):
    folder = job.path / "logs" / "wandb"
    first = services.WandB(job, folder, [], OFFLINE)
    for step in range(1, 6):
        first.track(_row(step))
    first.close()
    (before,) = folder.glob("wandb/offline-run-*/*.wandb")
    second = services.WandB(job, folder, [_score(0), _row(1), _row(2), _score(2), _row(3)], OFFLINE)
    for step in range(4, 8):
        second.track(_row(step))
    second.evaluated(_score(7))
    second.close()
    (left,) = services._unsynced(folder)
    assert left != before, "the earlier one has no rows of its own: `wandb sync --sync-all` passes over it"
    for _ in range(60):  # wandb's own process writes the file
        if _logged(left)[2] and _logged(before)[0] is not None:
            break
        time.sleep(0.5)
    run, losses, scores = _logged(left)
    assert losses == [1, 2, 3, 4, 5, 6, 7]
    assert scores == [0, 2, 7]
    assert run == _logged(before)[0] == ("tracked-" + "0" * 16, services.PROJECT), "one training run is one wandb run"


def test_variables_that_users_know_choose_project_and_folder(job, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "of-mine")
    tracker = services.WandB(job, job.path / "logs" / "wandb", [], OFFLINE)
    tracker.track(_row(1))
    tracker.close()
    (file,) = services._unsynced(job.path / "logs" / "wandb")
    for _ in range(60):  # wandb's own process writes the file
        if _logged(file)[0] is not None:
            break
        time.sleep(0.5)
    assert _logged(file)[0][1] == "of-mine"
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "curves"))
    found = trackers.open_trackers(job.model_copy(update={"tracking": ["tensorboard"]}), 1, 4, 0, [])
    for tracker in found:
        tracker.close()
    assert len(list((tmp_path / "curves" / ("tracked-" + "0" * 16)).iterdir())) == 1
