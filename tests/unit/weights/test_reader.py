"""Lazy reading and sharded writing."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vlmrun import artifact
from vlmrun.errors import CheckpointError
from vlmrun.weights import file as output
from vlmrun.weights.file import Output
from vlmrun.weights.reader import INDEX, Reader
from vlmrun.weights.writer import Writer

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]


def _some(n=6, size=10):
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(size, i + 1, generator=generator) for i in range(n)}


def _write(folder, values, limit=5e9):
    with Writer(folder, _types(values), max_shard_bytes=limit) as writer:
        for name, value in values.items():
            writer.write(name, value.split(3))


def _types(values):
    return {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    limit=st.integers(1, 400),
    kinds=st.lists(st.sampled_from(DTYPES), min_size=12, max_size=12),
)
def test_what_is_written_is_read_back_to_the_bit(tmp_path_factory, sizes, limit, kinds):
    folder = tmp_path_factory.mktemp("shards")
    values = {f"t{i}": (torch.randn(size) * 3).to(kinds[i]) for i, size in enumerate(sizes)}
    _write(folder, values, limit)
    reader = Reader(folder)
    assert reader.names() == sorted(values)
    for name, value in values.items():
        assert (reader.shape(name), reader.dtype(name)) == (tuple(value.shape), value.dtype)
        assert torch.equal(reader.get(name), value)
    for file in reader.files():
        held = load_file(file)
        n_bytes = sum(t.numel() * t.element_size() for t in held.values())
        assert n_bytes <= limit or len([t for t in held.values() if t.numel()]) == 1
    assert all(file.name.startswith("model") for file in folder.iterdir())


def test_many_shards_have_the_usual_names_and_an_index(tmp_path):
    _write(tmp_path, _some(3), limit=1)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {f"layer.{i}.weight": name for i, name in enumerate(names)}
    assert index["metadata"]["total_size"] == 4 * 10 * (1 + 2 + 3)


def test_pieces_may_be_views_of_one_buffer_that_changes(tmp_path):
    buffer = torch.arange(8, dtype=torch.float32)

    def pieces():
        for start in (0, 2):
            yield buffer.view(2, 4).T[start : start + 2]
            buffer.add_(8)

    with Writer(tmp_path, {"a": (torch.float32, (4, 2)), "scalar": (torch.int64, ())}) as writer:
        writer.write("a", pieces())
        writer.write("scalar", [torch.tensor(7)])
    reader = Reader(tmp_path)
    expected = torch.arange(8.0).view(2, 4).T + torch.tensor([[0], [0], [8], [8]])
    assert torch.equal(reader.get("a"), expected)
    assert torch.equal(reader.rows("a", 1, 3), expected[1:3])
    assert torch.equal(reader.rows("scalar", 0, 1), torch.tensor([7]))


def test_transformers_reads_our_shards(tmp_path):
    from tests.pico import pico_llm
    from vlmrun.model.llm import load

    folder = pico_llm(tmp_path / "llm")
    whole = load_file(folder / "model.safetensors")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    _write(copy, whole, limit=10_000)
    assert len(Reader(copy).files()) > 2
    model = load(str(copy), dtype=torch.float32, attention="sdpa").model
    assert all(torch.equal(value, whole[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("limit", [5e9, 1])
def test_a_failing_producer_leaves_nothing(tmp_path, limit):
    def produce():
        with Writer(tmp_path, _types(_some()), max_shard_bytes=limit) as writer:
            for name, value in _some().items():
                writer.write(name, [value])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        produce()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    synced = []

    def full(_):
        synced.append(1)
        if len(synced) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device(.|\n)*are free: make room"):
        _write(tmp_path, _some(), limit=1)
    assert len(synced) >= 3  # the others were on their way
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_takes_only_part_is_continued(tmp_path, monkeypatch):
    """As the system does beyond 2 GiB, and on a disk that is nearly full."""
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(output.os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    monkeypatch.setattr(output.os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:11]], at))
    with Writer(tmp_path, _types(_some(3)), hashed=True) as writer:
        for name, value in _some(3).items():
            writer.write(name, [value])
    assert all(torch.equal(Reader(tmp_path).get(name), value) for name, value in _some(3).items())
    file = tmp_path / "model.safetensors"
    assert writer.digests == {file: artifact.digest(file)}


@pytest.mark.parametrize("limit", [5e9, 300, 1])
def test_many_tensors_are_made_at_once_and_hashed_in_order(tmp_path, limit):
    """The first of them is the last to be ready."""
    values = {f"t{i:02d}": torch.full((10, i % 3), float(i)) for i in range(24)}
    others, threads = threading.Semaphore(0), set()

    def pieces(name):
        if name == "t00":
            assert others.acquire(timeout=60), "no other tensor is written before the first one is"
        threads.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        yield values[name]
        others.release()

    told = []
    with Writer(tmp_path, _types(values), max_shard_bytes=limit, hashed=True, each=told.append) as writer:
        for name in values:
            writer.write(name, pieces(name))
    assert told == list(values)
    assert threading.get_ident() not in threads
    assert len(threads) > 1
    reader = Reader(tmp_path)
    assert all(torch.equal(reader.get(name), value) for name, value in values.items())
    assert writer.digests == {file: artifact.digest(file) for file in reader.files()}


def _torchs_threads():
    """Of this thread, and of one that begins now."""
    with ThreadPoolExecutor(1) as pool:
        return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()


def test_nothing_is_read_of_nothing(tmp_path):
    save_file(
        {"flat": torch.empty(0), "rows": torch.empty(5, 0), "full": torch.ones(4, 3)}, tmp_path / "model.safetensors"
    )
    reader = Reader(tmp_path)
    assert reader.flat("flat", 0, 0).shape == (0,)
    assert reader.rows("rows", 1, 4).shape == (3, 0)
    assert reader.rows("full", 2, 2).shape == (0, 3)


@pytest.mark.parametrize(
    "changed", [{"other": torch.ones(4)}, {"full": torch.ones(2, 6)}, {"full": torch.ones(4, 3).half()}]
)
def test_a_file_that_is_changed_while_it_is_open_is_not_read(tmp_path, changed):
    save_file({"full": torch.ones(4, 3)}, tmp_path / "model.safetensors")
    reader = Reader(tmp_path)
    save_file(changed, tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="changed while it was open"):
        reader.flat("full", 0, 3)


def test_a_type_that_is_not_handled_is_in_nobody_elses_way(tmp_path):
    eighth = torch.zeros(4).to(torch.float8_e4m3fn)
    save_file({"odd": eighth, "usual": torch.arange(4.0)}, tmp_path / "model.safetensors")
    reader = Reader(tmp_path)
    assert reader.flat("usual", 1, 3).tolist() == [1.0, 2.0]
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        reader.flat("odd", 0, 1)


@pytest.mark.parametrize("most", [2, 3])
def test_no_more_tensors_are_made_at_once_than_may_be(tmp_path, monkeypatch, most):
    """Of tensors that are held whole, however many threads torch has."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    held, peak, together, lock = [0], [0], threading.Barrier(most), threading.Lock()

    def pieces():
        with lock:
            held[0] += 1
            peak[0] = max(peak[0], held[0])
        together.wait(timeout=60)  # so many are
        with lock:
            held[0] -= 1
        yield torch.zeros(3)

    types = {f"t{number}": (torch.float32, (3,)) for number in range(6 * most)}
    with Writer(tmp_path, types, at_once=most) as writer:
        for name in types:
            writer.write(name, pieces())
    assert peak == [most]


@pytest.mark.parametrize("fails", [False, True])
def test_torchs_threads_are_what_they_were(tmp_path, fails):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = []

    def pieces():
        seen.append(torch.get_num_threads())
        yield torch.zeros(1 if fails else 2)

    try:
        with (
            contextlib.suppress(AssertionError),
            Writer(tmp_path / "a", {"x": (torch.float32, (2,))}) as first,
            Writer(tmp_path / "b", {"x": (torch.float32, (2,))}) as second,
        ):
            first.write("x", pieces())
            second.write("x", pieces())
        assert seen == [1, 1]
        assert _torchs_threads() == (3, 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_what_fails_while_a_tensor_is_made_is_told_as_it_is_and_leaves_nothing(tmp_path, order):
    began = threading.Event()

    def failing():
        assert began.wait(60)
        yield torch.zeros(4, 1)
        raise CheckpointError("the source is torn", "a file", "copy it again")

    def endless():
        began.set()
        last = time.monotonic() + 60
        while time.monotonic() < last:
            yield torch.zeros(0, 1)

    def produce():
        with Writer(tmp_path, dict.fromkeys(order, (torch.float32, (8, 1))), hashed=True) as writer:
            for name in order:
                writer.write(name, failing() if name == "a" else endless())  # the other one is given up too

    start = time.monotonic()
    with pytest.raises(CheckpointError, match="the source is torn"):
        produce()
    assert time.monotonic() - start < 50
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["_reserve", "pwrite", "preadv"])
def test_a_file_that_cannot_even_begin_leaves_nothing(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output if call == "_reserve" else output.os, call, full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with (
        pytest.raises(CheckpointError, match="No space left on device"),
        Writer(tmp_path, _types(_some()), max_shard_bytes=1, hashed=True) as writer,
    ):
        writer.write("layer.0.weight", [_some()["layer.0.weight"]])
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_room_is_taken_before_the_work_and_what_is_left_of_it_given_back(tmp_path):
    file = Output(tmp_path / "x", 1 << 20)
    file.open()
    taken = (tmp_path / "x").stat()
    file.write(memoryview(b"some"), 0)
    file.close(4)
    left = (tmp_path / "x").stat()
    if not taken.st_blocks:
        pytest.skip("this file system reserves nothing")
    assert (taken.st_size, taken.st_blocks * 512 >= 1 << 20) == (0, True)
    assert (left.st_size, left.st_blocks * 512 < 1 << 20) == (4, True)


def test_a_real_write_error_is_told_and_leaves_nothing(tmp_path):
    """The kernel refuses to let a file grow, as a full disk or a quota does."""
    script = f"""
import resource, signal, torch
from pathlib import Path
from vlmrun.weights.writer import Writer
from vlmrun.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    sizes = (100, 100, 5000)
    types = {{str(i): (torch.float32, (size,)) for i, size in enumerate(sizes)}}
    with Writer(Path({str(tmp_path)!r}), types, max_shard_bytes=2000) as writer:
        for i, size in enumerate(sizes):
            writer.write(str(i), [torch.zeros(size)])
except CheckpointError as error:
    print("told:", error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("told: error: weights cannot be written")
    assert list(tmp_path.iterdir()) == []


def _announced(folder, *written):
    with Writer(folder, {"a": (torch.float32, (2,)), "b": (torch.float32, (1,))}, max_shard_bytes=4) as writer:
        for name, value in written:
            writer.write(name, [value])


def test_what_was_not_announced_so_is_a_bug_and_leaves_nothing(tmp_path):
    a, b = torch.zeros(2), torch.zeros(1)
    for written, said in (
        ([("b", b)], "not the tensor that was announced"),
        ([("a", a), ("a", a)], "not the tensor that was announced"),
        ([("a", a), ("b", b), ("c", b)], "not the tensor that was announced"),
        ([("a", b)], "4 bytes, announced 8"),
        ([("a", a.double())], "float64"),
        ([("a", a)], r"were not written: \['b'\]"),
    ):
        with pytest.raises(AssertionError, match=said):
            _announced(tmp_path, *written)
        assert list(tmp_path.iterdir()) == [], said


@pytest.mark.parametrize("keep", [0, 5, 60, -3])
def test_a_torn_shard_is_found_before_work_starts(tmp_path, keep):
    _write(tmp_path, _some(3), limit=1)
    victim = tmp_path / "model-00002-of-00003.safetensors"
    victim.write_bytes(victim.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cannot be read(.|\n)*model-00002-of-00003"):
        Reader(tmp_path)


def test_missing_shards_and_bad_indexes_are_told(tmp_path):
    _write(tmp_path, _some(3), limit=1)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / "model-00003-of-00003.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"shard model-00003-of-00003\.safetensors is missing"):
        Reader(tmp_path)
    for wrong, message in (
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps({"weight_map": {"a": "../../etc/passwd"}}), "outside its folder"),
        (json.dumps({"weight_map": {"ghost": index["weight_map"]["layer.0.weight"]}}), "'ghost' is not in its shard"),
    ):
        (tmp_path / INDEX).write_text(wrong)
        with pytest.raises(CheckpointError, match=message):
            Reader(tmp_path)


def test_a_folder_without_weights_is_told(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="no weights in this folder"):
            Reader(folder)


def test_an_unknown_tensor_is_told_with_the_nearest(tmp_path):
    _write(tmp_path, _some(2))
    with pytest.raises(CheckpointError, match=r"did you mean 'layer\.0\.weight'"):
        Reader(tmp_path).get("layer.0.wieght")


def test_bin_files_are_read_without_running_what_is_in_them(tmp_path):
    values = _some(2)
    torch.save(values, tmp_path / "pytorch_model.bin")
    reader = Reader(tmp_path)
    assert all(torch.equal(reader.get(name), value) for name, value in values.items())
    assert reader.shape("layer.1.weight") == (10, 2)
    assert reader.dtype("layer.1.weight") == torch.float32

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"asks for io\.open, which is code: it is not read"):
        Reader(tmp_path)
    assert not (tmp_path / "owned").exists()
