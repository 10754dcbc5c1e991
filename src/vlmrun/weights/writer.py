"""Tensors written slice by slice: shapes are known before, so a header goes first and nothing waits in memory."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from operator import methodcaller
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError

from vlmrun import artifact
from vlmrun.errors import CheckpointError
from vlmrun.weights.file import Behind, Output
from vlmrun.weights.reader import CODES

_LOOK = 0.005  # seconds after which what there is of an unfinished tensor is hashed
SLICE = 1 << 19  # elements of a tensor worked on at a time: many for each word of Python, few for a core's cache
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt. Source: glibc/malloc/malloc.h
AT_ONCE = 8  # tensors, at most, that are made at a time

Report = Callable[[int, int, str], None]
Shape = tuple[int, ...]
Types = Mapping[str, tuple[torch.dtype, Shape]]  # of every tensor that a file will hold


def silent(done: int, total: int, what: str) -> None:
    """A report that nobody hears."""


def counting(report: Report, total: int) -> Callable[[str], None]:
    """A report of one name after another, out of so many."""
    done = itertools.count(1)
    return lambda what: report(next(done), total, what)


def blocks(shape: Shape) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of every block of a tensor that is worked on at a time; a scalar is one row."""
    n_rows, step = (shape[0] if shape else 1), max(1, SLICE // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def raw(piece: torch.Tensor) -> memoryview:
    """The bytes of a tensor in memory order, as a file has them."""
    flat = piece.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if len(flat) else memoryview(b"")


def cast(pieces: Iterable[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The same pieces in another type; none is held on to while the next one is made."""
    return map(methodcaller("to", dtype), pieces)


def _keep_freed_memory() -> None:
    """Lets glibc's allocator reuse the memory of slices, and give back what is much more; elsewhere this does nothing.

    Left alone it maps blocks of their size anew each time, and every page of them costs a fault.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 16 << 20)
        mallopt(_ARENA_MAX, 2)


class Makers(ThreadPoolExecutor):
    """Threads that make slices, two at least and eight at most, otherwise as many as torch has.

    Each computes as one thread: arithmetic that took all cores would stand in the others' way.

    Args:
        most: at most so many.
    """

    _lock = threading.Lock()
    _living = 0
    _before = 1  # torch's threads before any of them lived

    def __init__(self, most: int = AT_ONCE) -> None:
        _keep_freed_memory()
        with Makers._lock:
            if not Makers._living:
                Makers._before = torch.get_num_threads()
            Makers._living += 1
        self._ended = False
        self.n = max(2, min(Makers._before, most))
        super().__init__(self.n, "slices", initializer=torch.set_num_threads, initargs=(1,))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends them."""
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        with Makers._lock:
            Makers._living -= not self._ended
            self._ended = True
            if not Makers._living:  # what one of them said is what a new thread would go by
                torch.set_num_threads(Makers._before)


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
        at_once: tensors that are made at a time, at most; two, where pieces are whole tensors that somebody must hold.
        told: called with the name of every tensor that is written, in order, in another thread.

    Raises:
        CheckpointError: when the disk is full or the folder cannot be written.
    """

    def __init__(  # noqa: PLR0913 -- where, what, and how it is cut and told
        self,
        folder: Path,
        tensors: Types,
        *,
        name: str = "model",
        max_shard_bytes: float = 5e9,
        hashed: bool = False,
        at_once: int = AT_ONCE,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.digests: dict[Path, str] = {}
        self._name = name
        self._sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in tensors.items()}
        self._tensors = dict(tensors)
        self._shards = iter(_shards(self._sizes, max_shard_bytes))
        self._hashed, self._told = hashed, told
        self._files: list[_Shard] = []
        self._left: list[str] = []  # of the last file's tensors those that are to come
        self._making, self._syncing = Makers(at_once), Behind()
        self._following = Behind(2 * self._making.n)
        self._stopped = False

    def write(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """Lets one tensor be written: its elements in order, in pieces of any size.

        They are drawn in another thread, beside those of other tensors, until `close` has returned at the latest: what
        they are made of must not change before that.
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
        self._files.append(_Shard(temporary, {name: (*self._tensors[name], self._sizes[name]) for name in names}))
        self._left = list(names)
        self._files[-1].open()
        if not names:
            self._following.do(self._finish, self._files[-1])

    def _write(self, file: _Shard, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """All of one tensor, in a thread of `_making`. When one fails, none goes on."""
        try:
            self._write_pieces(file, name, pieces)
        except BaseException:
            self._stopped = True
            raise

    def _write_pieces(self, file: _Shard, name: str, pieces: Iterable[torch.Tensor]) -> None:
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
            del piece, data  # not held while the next one is made
        assert n_bytes == self._sizes[name], f"{name}: {n_bytes} bytes, announced {self._sizes[name]}"

    def _follow(self, written: Future[None], file: _Shard, name: str) -> None:
        """What is done with tensors one after another: in a thread of its own that waits for each."""
        try:
            while self._hashed and not written.done():
                file.hash(file.filled.get(name, 0))
                with contextlib.suppress(TimeoutError):
                    written.exception(_LOOK)
            written.result()
            if self._stopped:  # another tensor failed, and this one need not be whole
                return
            self._told(name)
            stop = file.places[name][1]
            if self._hashed:
                file.hash(stop)
            if name == next(reversed(file.places)):
                self._finish(file)
            else:
                file.sync(self._syncing, stop)
        except BaseException:
            self._stopped = True
            raise

    def _finish(self, file: _Shard) -> None:
        """It is whole; it has its name when all are."""
        if self._hashed:
            file.hash(file.size)
        self._syncing.do(file.close, file.size)

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


class _Shard(Output):
    """A safetensors file whose tensors are filled in side by side.

    Args:
        tensors: type, shape and bytes of each, in the order in which they lie in it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, Shape, int]]) -> None:
        header = _header(tensors)
        self.places: dict[str, tuple[int, int]] = {}  # first and last (exclusive) byte
        self.filled: dict[str, int] = {}  # of a tensor that is being written, where the next slice begins
        self.size = len(header)
        for name, (_, _, size) in tensors.items():
            self.places[name] = self.size, self.size + size
            self.size += size
        super().__init__(path, self.size)
        self._header = header

    def open(self) -> None:
        """Begins it with its header."""
        super().open()
        self.write(memoryview(self._header), 0)


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
