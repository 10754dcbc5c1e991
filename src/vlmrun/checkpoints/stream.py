"""Tensors written slice by slice: shapes are known before, so a header goes first and nothing waits in memory."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from safetensors import SafetensorError

from vlmrun import artifact
from vlmrun.checkpoints.tensors import CODES
from vlmrun.errors import CheckpointError

_SYNCED = 64 << 20  # bytes after which the disk is told to begin: at the end there is little left to wait for
_AHEAD = 4  # slices that are made and not yet written
SLICE = 1 << 18  # elements of one tensor that are worked on at a time: what a processor's cache holds

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

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._waiting: collections.deque[Future[None]] = collections.deque()

    def do(self, what: Callable[..., Any], *given: Any) -> None:
        """Puts it at the end of the row; raises what an earlier one raised."""
        if len(self._waiting) >= _AHEAD:
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


class Writer:
    """Writes the tensors of a folder as `NAME.safetensors`, or as shards with an index, a slice at a time.

    A shard lies under a temporary name until `close`, which renames all of them; a failure, or leaving the `with`
    block by an exception, removes them.

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
        self._left: list[str] = []
        self._files: list[IO[bytes]] = []
        self._written: list[tuple[Path, list[str]]] = []
        self._writing, self._syncing, self._hashing = Behind(), Behind(), Behind() if hashed else None
        self._unsynced = 0
        self._hashes: list[Any] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """Writes one tensor: its elements in order, in pieces of any size, which must not change afterwards."""
        with self._failing():
            if not self._left:
                self._seal()
                self._begin(next(self._shards, []))
            assert self._left[:1] == [name], f"{name} is not the tensor that was announced: {self._left[:1]}"
            n_bytes = 0
            for piece in pieces:
                assert piece.dtype == self._tensors[name][0], f"{name}: {piece.dtype}"
                data = raw(piece)
                n_bytes += len(data)
                self._put(data)
            assert n_bytes == self._sizes[name], f"{name}: {n_bytes} bytes, announced {self._sizes[name]}"
            self._left.pop(0)

    def close(self) -> None:
        """Gives every file its name; all tensors must have been written."""
        with self._failing():
            if not self._written:  # a part without weights is a file without tensors
                self._begin(next(self._shards))
            self._seal()
            rest = [*self._left, *(name for shard in self._shards for name in shard)]
            assert not rest, f"tensors were not written: {rest[:3]}"
            for each in self._threads():
                each.wait()
            self._end_threads()
            self._publish()

    def abort(self) -> None:
        """Removes what was written; nothing is left in the folder."""
        self._end_threads()
        for file in self._files:
            file.close()
        for temporary, _ in self._written:
            temporary.unlink(missing_ok=True)
        self._written = []

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
        temporary = self.folder / f".{self._name}-{len(self._written) + 1:05d}.safetensors.part"
        self._written.append((temporary, names))
        self._left = list(names)
        self._files.append(temporary.open("wb", buffering=0))
        self._hashes.append(hashlib.sha256())
        self._put(memoryview(_header({name: (*self._tensors[name], self._sizes[name]) for name in names})))

    def _put(self, data: memoryview) -> None:
        self._writing.do(_write_all, self._files[-1], data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNCED:
            self._syncing.do(os.fsync, self._files[-1].fileno())
            self._unsynced = 0
        if self._hashing is not None:
            self._hashing.do(self._hashes[-1].update, data)

    def _seal(self) -> None:
        """Syncs and closes the file that is whole, beside the work on the next one."""
        if self._files:
            self._writing.wait()
            self._syncing.do(_sync_and_close, self._files[-1])

    def _threads(self) -> list[Behind]:
        return [each for each in (self._writing, self._syncing, self._hashing) if each is not None]

    def _end_threads(self) -> None:
        for each in self._threads():
            each.close()

    def _publish(self) -> None:
        """Gives shards their final names, and an index when they are many."""
        total = len(self._written)
        weight_map: dict[str, str] = {}
        for number, (temporary, names) in enumerate(self._written, start=1):
            number_of = "" if total == 1 else f"-{number:05d}-of-{total:05d}"
            final = f"{self._name}{number_of}.safetensors"
            temporary.replace(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
            if self._hashing is not None:
                self.digests[self.folder / final] = self._hashes[number - 1].hexdigest()
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


def _write_all(file: IO[bytes], data: memoryview) -> None:
    """The system takes 2 GiB at most at a time, and on a full disk less than it was given."""
    while data:
        data = data[file.write(data) :]


def _sync_and_close(file: IO[bytes]) -> None:
    os.fsync(file.fileno())
    file.close()


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
