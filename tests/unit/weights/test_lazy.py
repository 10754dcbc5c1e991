"""Rows that are read when they are asked for, and pickles that are written from them."""

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmrun.errors import CheckpointError
from vlmrun.formats import pickles
from vlmrun.formats.megatron import _side_by_side
from vlmrun.weights import lazy
from vlmrun.weights.lazy import made, stack, whole
from vlmrun.weights.pickle_file import read_pickle
from vlmrun.weights.reader import Reader


def _matrix(n_rows, n_columns, start=0):
    return torch.arange(start, start + n_rows * n_columns, dtype=torch.float32).view(n_rows, n_columns)


@settings(max_examples=50, deadline=None)
@given(
    heights=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    width=st.integers(1, 4),
    span=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_rows_of_what_is_laid_together_are_those_of_the_whole(heights, width, span):
    parts = [_matrix(n, width, 100 * i) for i, n in enumerate(heights)]
    expected, found = torch.cat(parts), stack([made(part) for part in parts])
    first, last = sorted(int(x * len(expected)) for x in span)
    assert found.shape == tuple(expected.shape)
    assert torch.equal(found.load(), expected)
    assert torch.equal(found.rows(first, last), expected[first:last])
    assert torch.equal(found.flat(first, last), expected.flatten()[first:last])
    part = found.between(first, len(expected))
    assert torch.equal(part.load(), expected[first:])
    assert torch.equal(part.columns(width - 1, width).load(), expected[first:, -1:])
    pair = lazy.beside([made(expected), found.to(torch.float16).to(torch.float32)])
    assert torch.equal(pair.rows(first, last), torch.cat([expected, expected], 1)[first:last])
    turned = found.view((width, len(expected)))
    assert torch.equal(turned.rows(width - 1, width), expected.view(width, -1)[width - 1 :])


def test_what_can_only_be_made_whole_is_made_once_and_let_go():
    calls = []

    def make():
        calls.append(torch.ones(4, 2))
        return calls[-1]

    tensor = whole((4, 2), torch.float32, make)
    for _ in range(2):
        assert all(len(tensor.rows(n, n + 2)) == 2 for n in range(3))
    assert len(calls) == 2, "once a pass: it is not kept behind the last row"
    assert whole((), torch.float32, lambda: torch.tensor(3.0)).load() == 3


VALUES = {
    "whole": torch.arange(600.0).view(20, 30),
    "half": torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "cube": torch.arange(24, dtype=torch.int8).view(2, 3, 4),
    "scalar": torch.tensor(5),
    "nothing": torch.zeros(0, 4),
    "mask": torch.tensor([True, False]),
}


def test_a_pickle_is_what_torch_saves(tmp_path):
    given = {"args": argparse.Namespace(layers=2), "model": {n: made(v) for n, v in VALUES.items()} | {"state": None}}
    pickles.save(tmp_path / "model.pt", given)
    for mapped in (True, False):
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(tmp_path / "model.pt", mmap=mapped, weights_only=True)
        assert found["args"].layers == 2
        assert found["model"].pop("state") is None
        assert found["model"].keys() == VALUES.keys()
        for name, value in VALUES.items():
            same = found["model"][name]
            assert (same.dtype, same.shape, same.stride()) == (value.dtype, value.shape, value.stride()), name
            assert torch.equal(same, value), name
            if mapped and value.numel():
                assert same.data_ptr() % 64 == 0, "aligned, as torch's own"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0.0, 1.0), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_pickle_of_ours_is_noticed(tmp_path_factory, where, bit):
    path = tmp_path_factory.mktemp("ours") / "pytorch_model.bin"
    pickles.save(path, {name: made(value) for name, value in VALUES.items()})
    content = bytearray(path.read_bytes())
    content[min(int(where * len(content)), len(content) - 1)] ^= 1 << bit
    path.write_bytes(content)
    try:
        reader = Reader(path.parent)
        found = {name: reader.get(name) for name in reader.names()}
    except CheckpointError:
        return
    assert all(torch.equal(found[name], value) for name, value in VALUES.items()), "filling only"


def test_a_producer_that_fails_leaves_no_pickle(tmp_path):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pickles.save(tmp_path / "x.bin", {"a": made(torch.ones(3)), "b": whole((2,), torch.float32, fail)})
    assert list(tmp_path.iterdir()) == []
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert torch.equal(read_pickle(tmp_path / "pytorch_model.bin")["a"], torch.ones(2))


def test_a_rank_that_fails_ends_the_others(tmp_path):
    """What is told is the failure, whichever rank it is of, and soon."""
    began = threading.Event()

    def slow():
        began.set()
        time.sleep(0.05)
        return torch.ones(1)

    def fail():
        assert began.wait(60)
        raise ZeroDivisionError

    tables = [{str(n): whole((1,), torch.float32, slow) for n in range(1200)}, {"b": whole((1,), torch.float32, fail)}]
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        _side_by_side([tmp_path / "0/x.pt", tmp_path / "1/x.pt"], tables)
    assert time.monotonic() - start < 50
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_can_only_be_made_as_a_whole_is_made_once_for_several_readers():
    made_so_often = []

    def make():
        made_so_often.append(1)
        time.sleep(0.02)
        return torch.arange(64.0)

    tensor = whole((64,), torch.float32, make)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: tensor.rows(n, n + 1), range(63)))
    assert torch.equal(torch.cat(found), torch.arange(63.0))
    assert len(made_so_often) == 1
