import json
import logging

import pytest

from vlmrun.train import log


def _row(step, loss=1.5):
    return log.Row(step, step / 10, loss, 1e-3, 2.0, 30, 100, 8, 0.1)


def test_rows_are_written_at_once_and_cut_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = log.Metrics(path, 0)
    for step in range(1, 6):
        first.track(_row(step))
        assert len(list(log.read(path))) == step, "flushed line by line"
    with path.open("a") as handle:
        handle.write('{"step": 6, "epo')  # torn by a kill
    second = log.Metrics(path, 3)
    second.track(_row(4, loss=9.0))
    second.close()
    first.close()
    assert [(row.step, row.loss) for row in log.read(path)] == [(1, 1.5), (2, 1.5), (3, 1.5), (4, 9.0)]


def test_a_missing_loss_is_null_not_zero(tmp_path):
    metrics = log.Metrics(tmp_path / "metrics.jsonl", 0)
    metrics.track(_row(1, None))
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text("utf-8"))["loss"] is None
    assert "loss" not in log._numbers(_row(1, None))


@pytest.fixture
def spoken(monkeypatch):
    lines = []
    monkeypatch.setattr(log.log, "info", lambda text, *values: lines.append(text % values))
    return lines


def test_lines_come_every_few_seconds_and_at_the_end(spoken, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    lines = log.Lines("instruct", 0, 40)
    for step in range(1, 41):
        now[0] += 0.25
        lines.track(_row(step, 0.412))
    assert spoken[0] == "instruct  12/40  loss 0.412  lr 1.0e-03  4.0 it/s  eta 0:07"
    assert [line.split()[1] for line in spoken] == ["12/40", "24/40", "36/40", "40/40"]


def test_speed_counts_this_process_only(spoken, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    lines = log.Lines("lora", 90, 100)
    now[0] = 5.0
    lines.track(_row(95, None))
    assert spoken == ["lora  95/100  loss none  lr 1.0e-03  1.0 it/s  eta 0:05"]


def test_a_long_wait_is_told_in_hours(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    pace = log._Pace("big", 0, 10_000)
    now[0] = 100.0
    assert pace.line(_row(100)).endswith("1.0 it/s  eta 2:45:00")


def test_the_bar_gives_the_handlers_back(capsys):
    handler = logging.StreamHandler()
    logger = logging.getLogger("vlmrun")
    logger.addHandler(handler)
    try:
        bar = log.Bar("lora", 0, 3)
        bar.track(_row(1))
        logger.warning("in between")
        bar.track(_row(3))
        bar.close()
    finally:
        logger.removeHandler(handler)
    import sys

    assert handler.stream is sys.stderr
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lora" in captured.err
    assert "in between" in captured.err
