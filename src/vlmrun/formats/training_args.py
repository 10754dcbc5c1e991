"""training_args.bin of transformers' Trainer, as values alone: torch's weights-only reader with inert stand-ins.

The file is a pickle that names classes of whatever project wrote it. None of them is imported: each name gets a class
here that keeps what it is given. A pickle that wants anything to be called that is no such class is refused by torch.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from vlmrun.errors import CheckpointError

_FIX = "give the run's args.json, or its script: vlmrun import FILE.sh"


class _Kept:
    """Stands in for any class: holds its arguments and its state, and does nothing."""

    def __new__(cls, *arguments: Any) -> _Kept:
        made = super().__new__(cls)
        made.arguments = arguments
        made.values = {}
        return made

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.values: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}


def read(path: Path) -> dict[str, Any]:
    """The arguments in a training_args.bin: plain values only, enumerations by their value.

    Raises:
        CheckpointError: when it is no such file.
    """
    names: list[str] = []
    try:
        names = get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(type("Kept", (_Kept,), {}), name) for name in names]
        with safe_globals(stand_ins):
            loaded = torch.load(path, weights_only=True, map_location="cpu")
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        AttributeError,
        TypeError,
        KeyError,
        IndexError,
    ) as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if "weights_only" in first.lower() or "weights only" in first.lower():
            first = f"it holds more than values, and asks for {', '.join(names)[:200]}"
        raise CheckpointError(f"not a training_args.bin: {first}", str(path), _FIX) from None
    if not isinstance(loaded, _Kept) or not loaded.values:
        raise CheckpointError("not a training_args.bin: it holds no arguments", str(path), _FIX)
    return {name: value for name, kept in loaded.values.items() if (value := _value(kept)) is not None}


def _value(kept: Any) -> Any:
    if isinstance(kept, _Kept):
        return _value(kept.arguments[0]) if len(kept.arguments) == 1 else None
    if isinstance(kept, list | tuple):
        return [_value(item) for item in kept]
    return kept if isinstance(kept, str | int | float | bool) else None
