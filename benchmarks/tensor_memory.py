"""The bytes of all live tensors of this process, and their peak between two marks.

Every operation of torch passes by; what it returns is counted by storage, once, until the storage is freed. Memory that
an operation takes inside and gives back before it returns is not seen.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Meter(TorchDispatchMode):
    """Counts what is created inside `with`, and what is there when it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peaks: dict[str, int] = {}
        self._seen: dict[int, int] = {}
        for found in gc.get_objects():
            if issubclass(type(found), torch.Tensor):
                self._note(found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._note(tensor)
        return result

    def __enter__(self) -> Meter:
        # FSDP empties and refills storages by this method, which is no operation and does not pass by.
        self._resize = torch.UntypedStorage.resize_
        resize, meter = self._resize, self

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            if storage._cdata in meter._seen:
                meter._count(storage._cdata, storage.nbytes())
            return done

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def mark(self, phase: str) -> None:
        """Ends a phase: its peak is kept under this name (the largest, when it comes again)."""
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.peak)
        self.peak = self.live

    def _note(self, tensor: torch.Tensor) -> None:
        # A sharded tensor says that its storage is as large as the whole.
        tensor = getattr(tensor, "_local_tensor", tensor)
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        known = self._seen.get(key)
        if known is None:
            weakref.finalize(storage, self._forget, key)
        if known != size:  # DeepSpeed empties and refills storages in place
            self._count(key, size)

    def _count(self, key: int, size: int) -> None:
        self.live += size - self._seen.get(key, 0)
        self._seen[key] = size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._seen.pop(key)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
