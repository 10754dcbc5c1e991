"""Tensors written slice by slice: shapes are known before, so a header goes first and nothing waits in memory."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError

from vlmrun import artifact
from vlmrun.checkpoints.tensors import CODES
from vlmrun.errors import CheckpointError

_SYNCED = 64 << 20  # bytes after which the disk is told to begin: at the end there is little left to wait for
_LOOK = 0.005  # seconds after which what there is of an unfinished tensor is hashed
_HASHED = 1 << 20  # bytes that are read and hashed at a time
SLICE = 1 << 17  # elements of one tensor that are worked on at a time: what a core's cache holds, in fp32 and twice

Report = Callable[[int, int, str], None]
Shape = tuple[int, ...]
Types = Mapping[str, tuple[torch.dtype, Shape]]  # of every tensor that a file will hold


def silent(done: int, total: int, what: str) -> None:
    """A report that nobody hears."""


def blocks(shape: Shape) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of every block of a tensor that is worked on at a time; a scalar is one row."""
    n_rows, step = (shape[0] if shape else 1), max(1, SLICE // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def raw(piece: torch.Tensor) -> memoryview:
    """The bytes of a tensor in memory order, as a file has them."""
    flat = piece.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if len(flat) else memoryview(b"")


def cast(pieces: Iterable[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The same pieces in another type."""
    return (piece.to(dtype) for piece in pieces)


def keep_freed_memory() -> None:
    """Lets the allocator reuse the memory of slices; a process that works on many says so once.

    glibc maps blocks of their size anew each time, and every page of them costs a fault. It maps less readily after a
    larger block was given back. Source: man mallopt, M_MMAP_THRESHOLD. Elsewhere this does nothing.
    """
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)


class Behind:
    """Does one thing after another in a thread beside the caller's; a few may wait, then the caller does.

    Reading, arithmetic, writing and hashing all let go of the interpreter, so that they really go on side by side.
    """

    def __init__(self, ahead: int = 4) -> None:
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._waiting: collections.deque[Future[None]] = collections.deque()

    def do(self, what: Callable[..., Any], *given: Any) -> None:
        """Puts it at the end of the row; raises what an earlier one raised."""
        if len(self._waiting) >= self._ahead:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(what, *given))

    def wait(self) -> None:
        """Until all is done; raises what one of them raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Ends the thread; what has not begun is left undone."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.close()


class Makers(ThreadPoolExecutor):
    """Threads that make slices, two at least and eight at most, otherwise as many as torch has.

    Each computes on a core of its own: arithmetic that took all of them would stand in the others' way.
    """

    def __init__(self) -> None:
        self._before = torch.get_num_threads()
        self.n = max(2, min(self._before, 8))
        super().__init__(self.n, "slices", initializer=torch.set_num_threads, initargs=(1,))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends them."""
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        torch.set_num_threads(self._before)  # what one of them said is what a new thread would go by


class Writer:
    """Writes the tensors of a folder as `NAME.safetensors`, or as shards with an index, a slice at a time.

    Where every tensor will lie is known before, so several are made and written at once, each by one thread from its
    first slice to its last. A shard lies under a temporary name until `close`, which renames all of them; a failure, or
    leaving the `with` block by an exception, removes them.

    Args:
        tensors: type and shape of every tensor, in the order in which they will be written.
        hashed: fill `digests` meanwhile, with the SHA-256 of every file by its final path.
        name: of the file, before `.safetensors` or the number of a shard.
        max_shard_bytes: a shard is closed when the next tensor would make it larger.

    Raises:
        CheckpointError: when the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Types,
        *,
        name: str = "model",
        max_shard_bytes: float = 5e9,
        hashed: bool = False,
    ) -> None:
        keep_freed_memory()
        self.folder = Path(folder)
        self.digests: dict[Path, str] = {}
        self._name = name
        self._sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in tensors.items()}
        self._tensors = dict(tensors)
        self._shards = iter(_shards(self._sizes, max_shard_bytes))
        self._hashed = hashed
        self._files: list[_File] = []
        self._left: list[str] = []  # of the last file's tensors those that are to come
        self._making, self._syncing = Makers(), Behind()
        self._following = Behind(2 * self._making.n)
        self._stopped = False
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """Lets one tensor be written: its elements in order, in pieces of any size.

        They are drawn in another thread, beside those of other tensors, until `close` has returned at the latest.
        """
        with self._failing():
            if not self._left:
                self._begin(next(self._shards, []))
            assert self._left[:1] == [name], f"{name} is not the tensor that was announced: {self._left[:1]}"
            written = self._making.submit(self._write, self._files[-1], name, pieces)
            self._following.do(self._follow, written, self._files[-1], name)
            self._left.pop(0)

    def close(self) -> None:
        """Gives every file its name; all tensors must have been written."""
        with self._failing():
            if not self._files:  # a part without weights is a file without tensors
                self._begin(next(self._shards))
            self._following.wait()
            self._syncing.wait()
            rest = [*self._left, *(name for shard in self._shards for name in shard)]
            assert not rest, f"tensors were not written: {rest[:3]}"
            self._end_threads()
            self._publish()

    def abort(self) -> None:
        """Removes what was written; nothing is left in the folder."""
        self._end_threads()
        for file in self._files:
            file.remove()
        self._files = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _begin(self, names: list[str]) -> None:
        temporary = self.folder / f".{self._name}-{len(self._files) + 1:05d}.safetensors.part"
        self._files.append(_File(temporary, {name: (*self._tensors[name], self._sizes[name]) for name in names}))
        self._left = list(names)
        if not names:
            self._following.do(self._finish, self._files[-1])

    def _write(self, file: _File, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """All of one tensor, in a thread of `_making`."""
        (at, end), dtype = file.places[name], self._tensors[name][0]
        n_bytes = 0
        for piece in pieces:
            if self._stopped:
                return
            assert piece.dtype == dtype, f"{name}: {piece.dtype}"
            data = raw(piece)
            n_bytes += len(data)
            if at + n_bytes <= end:  # beyond is the next tensor
                file.write(data, at + n_bytes - len(data))
                file.filled[name] = at + n_bytes
        assert n_bytes == self._sizes[name], f"{name}: {n_bytes} bytes, announced {self._sizes[name]}"

    def _follow(self, written: Future[None], file: _File, name: str) -> None:
        """What is done with tensors one after another: in a thread of its own that waits for each."""
        while self._hashed and not written.done():
            file.hash(file.filled.get(name, 0))
            with contextlib.suppress(TimeoutError):
                written.exception(_LOOK)
        written.result()
        stop = file.places[name][1]
        if self._hashed:
            file.hash(stop)
        if name == next(reversed(file.places)):
            self._finish(file)
        elif stop - file.synced >= _SYNCED:
            file.synced = stop
            self._syncing.do(file.sync)

    def _finish(self, file: _File) -> None:
        """It is whole; it has its name when all are."""
        if self._hashed:
            file.hash(file.size)
        self._syncing.do(file.close)

    def _end_threads(self) -> None:
        self._stopped = True
        self._making.shutdown(wait=True, cancel_futures=True)
        self._following.close()
        self._syncing.close()

    def _publish(self) -> None:
        """Gives shards their final names, and an index when they are many."""
        total = len(self._files)
        weight_map: dict[str, str] = {}
        for number, file in enumerate(self._files, start=1):
            number_of = "" if total == 1 else f"-{number:05d}-of-{total:05d}"
            final = f"{self._name}{number_of}.safetensors"
            file.path.replace(self.folder / final)
            weight_map |= dict.fromkeys(file.places, final)
            if self._hashed:
                self.digests[self.folder / final] = file.digest()
        if total > 1:
            metadata = {"total_size": sum(self._sizes.values())}
            index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
            artifact.write_json(self.folder / f"{self._name}.safetensors.index.json", index)
        artifact.fsync_folder(self.folder)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turns what the disk refuses into an error that says how much room is needed."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            self.abort()
            free, wanted = shutil.disk_usage(self.folder).free, sum(self._sizes.values())
            raise CheckpointError(
                f"weights cannot be written: {error}",
                str(self.folder),
                f"{wanted:,} bytes were to be written and {free:,} are free: make room and run again",
            ) from error
        except BaseException:
            self.abort()
            raise


class _File:
    """A safetensors file that is filled at any place at any time, and hashed from its beginning.

    Args:
        tensors: type, shape and bytes of each, in the order in which they lie in it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, Shape, int]]) -> None:
        self.path = path
        self.places: dict[str, tuple[int, int]] = {}  # first and last (exclusive) byte
        self.filled: dict[str, int] = {}  # of a tensor that is being written, where the next slice begins
        header = _header(tensors)
        self.size = len(header)
        for name, (_, _, size) in tensors.items():
            self.places[name] = self.size, self.size + size
            self.size += size
        self.synced = 0
        self._sha256, self._hashed = hashlib.sha256(), 0
        self._buffer = bytearray(0)
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _reserve(self._fd, self.size)
            self.write(memoryview(header), 0)
        except BaseException:
            self.remove()
            raise

    def write(self, data: memoryview, at: int) -> None:
        """The system takes 2 GiB at most at a time, and on a full disk less than it was given."""
        assert self._fd is not None
        while data:
            n = os.pwrite(self._fd, data, at)
            data, at = data[n:], at + n

    def hash(self, stop: int) -> None:
        """Takes in what lies before `stop`: read again, as the tensors were not written in order."""
        assert self._fd is not None
        self._buffer = self._buffer or bytearray(_HASHED)
        while self._hashed < stop:
            view = memoryview(self._buffer)[: stop - self._hashed]
            n = os.preadv(self._fd, [view], self._hashed)
            if not n:
                raise OSError(f"{self.path} ends at {self._hashed:,} bytes")
            self._sha256.update(view[:n])
            self._hashed += n

    def digest(self) -> str:
        """SHA-256 of all that was hashed."""
        return self._sha256.hexdigest()

    def sync(self) -> None:
        """Waits until it is on the disk."""
        assert self._fd is not None
        os.fsync(self._fd)

    def close(self) -> None:
        """Syncs and closes it."""
        self.sync()
        self._close()

    def remove(self) -> None:
        """Whatever state it is in."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._buffer = bytearray(0)
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None


def _reserve(fd: int, size: int) -> None:
    """Takes room on the disk at once: what does not fit is told before the work, and writing there is faster.

    Where a file system cannot, nothing happens; glibc's posix_fallocate would write all of it instead.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None or call(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(number, os.strerror(number))


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    """Names by shard, in order; one empty shard when there is nothing."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _header(tensors: Mapping[str, tuple[torch.dtype, Shape, int]]) -> bytes:
    """The head of a safetensors file. Source: huggingface/safetensors README, "Format"."""
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        head[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
