import logging
import sys

import pytest

from vlmrun.train import progress
from vlmrun.train.log import Row


def _row(step, loss=1.5, **lrs):
    return Row(step, step / 10, loss, 1e-3, 2.0, 30, 100, 8, 0.1, lrs=lrs)


@pytest.fixture
def spoken(monkeypatch):
    lines = []
    monkeypatch.setattr(progress.log, "info", lambda text, *values: lines.append(text % values))
    return lines


def test_lines_come_every_few_seconds_and_at_the_end(spoken, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.Lines("instruct", 0, 40)
    for step in range(1, 41):
        now[0] += 0.25
        lines.track(_row(step, 0.412))
    assert spoken[0] == "instruct  12/40  loss 0.412  lr 1.0e-03  4.0 it/s  eta 0:07"
    assert [line.split()[1] for line in spoken] == ["12/40", "24/40", "36/40", "40/40"]


def test_speed_counts_this_process_only(spoken, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.Lines("lora", 90, 100)
    now[0] = 5.0
    lines.track(_row(95, None))
    assert spoken == ["lora  95/100  loss none  lr 1.0e-03  1.0 it/s  eta 0:05"]


def test_a_long_wait_is_told_in_hours(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress._Pace("big", 0, 10_000)
    now[0] = 100.0
    assert pace.line(_row(100)).endswith("1.0 it/s  eta 2:45:00")


def test_the_bar_gives_the_handlers_back(capsys):
    handler = logging.StreamHandler()
    logger = logging.getLogger("vlmrun")
    logger.addHandler(handler)
    try:
        bar = progress.Bar("lora", 0, 3)
        bar.track(_row(1))
        logger.warning("in between")
        bar.track(_row(3))
        bar.close()
    finally:
        logger.removeHandler(handler)
    assert handler.stream is sys.stderr
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lora" in captured.err
    assert "in between" in captured.err


def test_parts_with_rates_of_their_own_are_shown_by_name():
    pace = progress._Pace("lora", 0, 40)
    assert "  lr llm 2.0e-04, connector 1.0e-05  " in pace.line(_row(4, llm=2e-4, connector=1e-5))
    assert "  lr 1.0e-03  " in pace.line(_row(4, llm=1e-3, connector=1e-3))
