"""What `torch.save` wrote, read as tensors and never as a program, and what goes wrong while files are read."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vlmrun import regular
from vlmrun.errors import CheckpointError
from vlmrun.model.pretrained import refused_pickle, said

AGAIN = "the files were damaged or copied in part: copy or make them again"


def table(path: Path) -> dict[str, torch.Tensor]:
    """A pickle of nothing but named tensors."""
    found = read_pickle(path)
    other = next((name for name, value in found.items() if not isinstance(value, torch.Tensor)), None)
    if other is not None:
        what = f"{other!r} in it is no tensor, but {type(found[other]).__name__}"
        raise CheckpointError(what, str(path), "give a file of weights, not of a training's state")
    return found


def read_pickle(path: Path, plain: Sequence[type] = ()) -> dict[str, Any]:
    """What `torch.save` wrote, memory-mapped, and never a program: a pickle that asks for one is refused.

    Args:
        plain: further classes that it may hold, which are nothing but their fields.

    Raises:
        CheckpointError: when it is damaged (every record's CRC is compared), holds code, or is no table.
    """
    regular.require(path)
    with reading(path):
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{damaged!r} in it is damaged", str(path), AGAIN)
        # Torch's list is one for all threads: it is touched only for a file that needs it.
        allowing = torch.serialization.safe_globals(list(plain)) if plain else contextlib.nullcontext()
        with allowing, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle that torch did not write, which fails anyway
            # Files of torch before 1.6 are no archives and cannot be mapped.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(found, dict):
        raise CheckpointError("the file holds no table of tensors", str(path), "give a file of weights")
    return found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what readers of files of weights run into, when one is damaged, into an error with its place."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise refused_pickle(error, str(path)) from error
    except _DAMAGED as error:
        raise unreadable(error, path) from error


# What readers of files run into where bytes are not those that were written.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    SafetensorError,
    zipfile.BadZipFile,
)


def unreadable(error: Exception, path: Path) -> CheckpointError:
    """That a file of weights is damaged."""
    return CheckpointError(f"weights cannot be read: {said(error)}", str(path), AGAIN)
