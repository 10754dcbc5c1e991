import json

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
    assert "loss" not in log.numbers(_row(1, None))


def test_the_rate_that_stands_for_all_is_the_llms_or_that_of_what_trains():
    assert log.leading({"connector": 1e-5}) == 1e-5
    assert log.leading({"tower": 1e-6, "llm": 2e-5, "connector": 1e-5}) == 2e-5
    row = log.Row(1, 0.1, 1.5, 2e-5, 2.0, 30, 100, 8, 0.1, lrs={"tower": 1e-6, "llm": 2e-5})
    assert {n: v for n, v in log.numbers(row).items() if "lr" in n} == {"lr": 2e-5, "lr/tower": 1e-6, "lr/llm": 2e-5}
