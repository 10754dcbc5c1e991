import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch

from vlmrun.data.collate import Collator
from vlmrun.data.loader import Reading, batches
from vlmrun.data.records import open_datasets
from vlmrun.data.sampler import Schedule
from vlmrun.errors import ConfigError, DataError, Problem, VlmrunError
from vlmrun.model.tiles import Tiling


def load(dataset, *, workers=0, rank=0, ranks=1, first_step=0):
    schedule = Schedule(
        len(dataset),
        global_batch=4,
        micro_batch=2 if ranks == 1 else 1,
        ranks=ranks,
        epochs=2.0,
        max_steps=None,
        seed=3,
    )
    collator = Collator(1, Tiling(4), 8)
    return batches(dataset, schedule, collator, rank=rank, first_step=first_step, reading=Reading(workers))


def same(one, other):
    assert [step for step, _ in one] == [step for step, _ in other]
    for (_, mine), (_, theirs) in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a["ids"] == b["ids"]
            for key in ("input_ids", "labels", "attention_mask", "pixels"):
                assert torch.equal(a[key], b[key])


@pytest.fixture
def dataset(write_data, encoder, tmp_path):
    return open_datasets({"d": write_data(11)}, ["d"], encoder=encoder, skipped=None, folder=tmp_path / "index")


def test_steps_and_micro_batches(dataset):
    found = list(load(dataset))
    assert [step for step, _ in found] == [0, 1, 2, 3, 4]
    assert all([len(batch["ids"]) for batch in micro] == [2, 2] for _, micro in found)


def test_workers_change_nothing_and_end(dataset):
    before = set(multiprocessing.active_children())
    same(list(load(dataset, workers=2)), list(load(dataset)))
    assert not set(multiprocessing.active_children()) - before


def test_no_workers_start_no_process(dataset, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    list(load(dataset))
    with pytest.raises(AssertionError, match="a process was started"):  # the guard works
        list(load(dataset, workers=1))


def test_resumes_from_any_step(dataset):
    same(list(load(dataset, first_step=3)), list(load(dataset))[3:])
    assert list(load(dataset, first_step=5)) == []


def test_leaving_early_ends_the_workers(dataset):
    before = set(multiprocessing.active_children())
    iterator = load(dataset, workers=1)
    next(iterator)
    assert set(multiprocessing.active_children()) - before
    iterator.close()
    assert not set(multiprocessing.active_children()) - before


def test_ranks_share_each_batch(dataset):
    whole = [[name for batch in micro for name in batch["ids"]] for _, micro in load(dataset)]
    parts = [list(load(dataset, rank=rank, ranks=2)) for rank in range(2)]
    for step, ids in enumerate(whole):
        slots = [parts[rank][step][1][slot]["ids"] for slot in range(2) for rank in range(2)]
        assert [name for slot in slots for name in slot] == ids


def test_the_global_generator_is_left_alone(dataset):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(load(dataset))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_a_data_error(write_data, encoder, workers, tmp_path):
    config = write_data(11)
    (Path(config.images) / "4.png").write_bytes(b"x")
    dataset = open_datasets({"d": config}, ["d"], encoder=encoder, skipped=None, folder=tmp_path / "index")
    with pytest.raises(DataError, match="cannot be read"):
        list(load(dataset, workers=workers))


def test_workers_tell_a_bad_image_in_the_same_words(write_data, encoder, tmp_path):
    config = write_data(11)
    (Path(config.images) / "4.png").write_bytes(b"x")
    dataset = open_datasets({"d": config}, ["d"], encoder=encoder, skipped=None, folder=tmp_path / "index")
    told = []
    for workers in (0, 1):
        with pytest.raises(DataError) as error:
            list(load(dataset, workers=workers))
        told.append((str(error.value), error.value.problems))
    assert told[0] == told[1]
    assert told[0][1][0].fix
    assert "Traceback" not in told[1][0]


@pytest.mark.parametrize("kind", [VlmrunError, DataError, ConfigError])
def test_errors_travel_whole_between_processes(kind):
    error = kind([Problem("one", "here", "mend it"), Problem("two")])
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.problems, str(copy)) == (kind, error.problems, str(error))
