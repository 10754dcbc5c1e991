"""Tables of tensors as `torch.save` writes them, a slice at a time.

Such a file is a zip archive without compression: `data.pkl` holds the objects, in which every tensor names a record,
and the records hold the numbers. A record's size and CRC follow it, as in torch's own, so that nothing has to be gone
back to. Source: pytorch/pytorch@v2.13.0:torch/serialization.py (_save)
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import sys
import threading
import zipfile
from collections.abc import Iterable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from vlmrun import artifact
from vlmrun.weights.blocks import raw
from vlmrun.weights.file import Output
from vlmrun.weights.lazy import Lazy
from vlmrun.weights.parallel import Behind

_ALIGNED = 64  # where a record begins, so that it can be mapped; the room before it is an extra field of this name
_PADDING = b"FB"
_STRIDE = 4 << 20  # bytes after which hashing continues
_BESIDE = 300  # bytes about a record that are no numbers, not much more or less
_HEADER = 30  # bytes before the name in a record's own header. Source: PKWARE APPNOTE.TXT 4.3.7
_ZIP64 = 20  # bytes of the field for sizes beyond 4 GiB, which zipfile adds


def save(path: Path, table: dict[str, Any], stopped: threading.Event | None = None) -> str:
    """Writes a table whose tensors are `Lazy`; it is synced and has its name at the end.

    Args:
        stopped: given up when it is set.

    Returns:
        The file's SHA-256.

    Raises:
        CancelledError: it was given up.
    """
    content = io.BytesIO()
    pickler = _Pickler(content)
    pickler.dump(table)
    room = sum(_n_bytes(tensor) + _BESIDE for tensor in pickler.tensors)
    with artifact.writing(path) as temporary, _Stream(Output(temporary, room), stopped) as stream:
        with zipfile.ZipFile(cast("IO[bytes]", stream), "w") as archive:
            _record(archive, "data.pkl", [memoryview(content.getbuffer())])
            _record(archive, "byteorder", [memoryview(sys.byteorder.encode())])
            for number, tensor in enumerate(pickler.tensors):
                _record(archive, f"data/{number}", (raw(piece) for piece in tensor.pieces()))
            _record(archive, "version", [memoryview(b"3\n")])
        return stream.close()


class _Stream:
    """An output that is only written on; synced and hashed beside that."""

    def __init__(self, output: Output, stopped: threading.Event | None) -> None:
        self._output, self._end, self._hashed = output, 0, 0
        self._stopped = stopped
        self._syncing, self._hashing = Behind(), Behind()

    def write(self, data: bytes | memoryview) -> int:
        """All of it."""
        if self._stopped is not None and self._stopped.is_set():
            raise CancelledError
        view = memoryview(data)
        self._output.write(view, self._end)
        self._end += view.nbytes
        self._output.sync(self._syncing, self._end)
        if self._end - self._hashed >= _STRIDE:
            self._hashing.do(self._output.hash, self._end)
            self._hashed = self._end
        return view.nbytes

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> str:
        """Waits until all is done; gives the SHA-256."""
        self._hashing.do(self._output.hash, self._end)
        self._hashing.wait()
        self._syncing.wait()
        self._output.close(self._end)
        return self._output.digest()

    def __enter__(self) -> _Stream:
        try:
            self._output.open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._hashing.close()
        self._syncing.close()
        self._output.release()


def _record(archive: zipfile.ZipFile, name: str, pieces: Iterable[memoryview]) -> None:
    about = zipfile.ZipInfo(f"archive/{name}")
    assert archive.fp is not None
    begin = archive.fp.tell() + _HEADER + len(about.filename) + _ZIP64 + 4
    room = -begin % _ALIGNED
    about.extra = _PADDING + room.to_bytes(2, "little") + bytes(room)
    with archive.open(about, "w", force_zip64=True) as record:
        for piece in pieces:
            record.write(piece)


def _n_bytes(tensor: Lazy) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


@dataclass(frozen=True)
class _Storage:
    """What the pickle calls the numbers of a tensor."""

    number: int
    tensor: Lazy


class _Pickler(pickle.Pickler):
    """Writes a `Lazy` as a tensor, and remembers it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: list[Lazy] = []

    def reducer_override(self, value: Any) -> Any:
        """A contiguous tensor on the CPU that wants no gradient."""
        if not isinstance(value, Lazy):
            return NotImplemented
        self.tensors.append(value)
        storage = _Storage(len(self.tensors) - 1, value)
        strides = tuple(math.prod(value.shape[place + 1 :]) for place in range(len(value.shape)))
        hooks: collections.OrderedDict[str, Any] = collections.OrderedDict()
        arguments = (storage, 0, value.shape, strides, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, value: Any) -> Any:
        """The record of a tensor's numbers."""
        if not isinstance(value, _Storage):
            return None
        kind = getattr(torch, torch.storage._dtype_to_storage_type_map()[value.tensor.dtype])
        return ("storage", kind, str(value.number), "cpu", math.prod(value.tensor.shape))
