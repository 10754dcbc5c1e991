"""Tensors written slice by slice: shapes are known before, so a header goes first and nothing waits in memory."""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError

from vlmrun import artifact
from vlmrun.errors import CheckpointError
from vlmrun.weights.blocks import raw
from vlmrun.weights.parallel import AT_ONCE, Behind, Makers
from vlmrun.weights.shard import Shard, Types, in_shards

_LOOK = 0.005  # seconds after which what there is of an unfinished tensor is hashed
Report = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """A report that goes nowhere."""


def counting(report: Report, total: int) -> Callable[[str], None]:
    """A report of one name after another, out of `total`."""
    done = itertools.count(1)
    return lambda what: report(next(done), total, what)


class Writer:
    """Writes the tensors of a folder as `NAME.safetensors`, or as shards with an index, a slice at a time.

    Where every tensor will lie is known before, so several are made and written at once, each by one thread from its
    first slice to its last. A shard has a temporary name until `close`, which renames all of them; a failure, or
    leaving the `with` block by an exception, removes them.

    Args:
        tensors: type and shape of every tensor, in the order in which they will be written.
        hashed: fill `digests` meanwhile, with the SHA-256 of every file by its final path.
        name: of the file, before `.safetensors` or the number of a shard.
        max_shard_bytes: a shard is closed when the next tensor would make it larger.
        at_once: tensors that are made at a time, at most; two, where pieces are whole tensors that are held meanwhile.
        each: called with the name of every tensor that is written, in order, in another thread.

    Raises:
        CheckpointError: when the disk is full or the folder cannot be written.
    """

    def __init__(  # noqa: PLR0913 -- where, what, and how it is cut and reported
        self,
        folder: Path,
        tensors: Types,
        *,
        name: str = "model",
        max_shard_bytes: float = 5e9,
        hashed: bool = False,
        at_once: int = AT_ONCE,
        each: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.digests: dict[Path, str] = {}
        self._name = name
        self._sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in tensors.items()}
        self._tensors = dict(tensors)
        self._shards = iter(in_shards(self._sizes, max_shard_bytes))
        self._hashed, self._each = hashed, each
        self._files: list[Shard] = []
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
        self._files.append(Shard(temporary, {name: (*self._tensors[name], self._sizes[name]) for name in names}))
        self._left = list(names)
        self._files[-1].open()
        if not names:
            self._following.do(self._finish, self._files[-1])

    def _write(self, file: Shard, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """All of one tensor, in a thread of `_making`. When one fails, none continues."""
        try:
            self._write_pieces(file, name, pieces)
        except BaseException:
            self._stopped = True
            raise

    def _write_pieces(self, file: Shard, name: str, pieces: Iterable[torch.Tensor]) -> None:
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

    def _follow(self, written: Future[None], file: Shard, name: str) -> None:
        """What is done with tensors one after another: in a thread of its own that waits for each."""
        try:
            while self._hashed and not written.done():
                file.hash(file.filled.get(name, 0))
                with contextlib.suppress(TimeoutError):
                    written.exception(_LOOK)
            written.result()
            if self._stopped:  # another tensor failed, and this one need not be whole
                return
            self._each(name)
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

    def _finish(self, file: Shard) -> None:
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
