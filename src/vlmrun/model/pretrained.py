"""Loading models of transformers so that whatever does not fit is an error, not a random weight."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from collections.abc import Iterator
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch

from vlmrun import regular
from vlmrun.errors import CheckpointError, VlmrunError
from vlmrun.model.attention import ready


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps transformers' reports and bars off the terminal; what matters of them is checked here."""
    from transformers.utils import logging

    # PEFT imports bitsandbytes wherever it is installed, which then misses an optional kernel aloud. For good.
    getLogger("bitsandbytes").setLevel(ERROR)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load(
    model_class: Any,
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str,
    quantization: Any = None,
    config: Any = None,
) -> Any:
    """Loads a model in eval mode from a local folder.

    Sharded at once when an `HfDeepSpeedConfig` of ZeRO-3 is alive.

    Args:
        quantization: a `BitsAndBytesConfig` (`quantise.load`); None loads the weights as they are.
        config: in place of the one that the folder names (`families.read_config`).

    Raises:
        CheckpointError: when weights are missing, damaged, of other shapes, or the model cannot do this attention.
    """
    ready(attention)
    regular.require_all(folder)
    with quietly(), read_by_others(str(folder), "the model", _ANOTHER):
        model, report = model_class.from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            quantization_config=quantization,
            **({} if config is None else {"config": config}),
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{len(missing)} weights are missing, first {missing[0]!r}",
            str(folder),
            "the folder is incomplete or of another model family: fetch or make it again",
        )
    return model


def create(model_class: Any, config: Any, *, dtype: torch.dtype, attention: str) -> Any:
    """Makes a model with random weights, in eval mode; also works while ZeRO-3's config is alive.

    Raises:
        CheckpointError: when the config is not one of the family, or the model cannot do this attention.
    """
    ready(attention)
    # The composite class called directly would be sharded in part only; `_from_config` does it whole (platform T8).
    with quietly(), read_by_others(type(config).__name__, "the model", _ANOTHER):
        maker = getattr(model_class, "_from_config", None) or model_class.from_config
        return maker(config, dtype=dtype, attn_implementation=attention).eval()


_ANOTHER = "fetch or make it again; if the message names attention, choose another hardware.attention"


@contextlib.contextmanager
def read_by_others(where: str, what: str, fix: str) -> Iterator[None]:
    """Turns whatever another library runs into while it reads a damaged or foreign file into an error that says so.

    Args:
        what: is read, such as `the tokenizer`.
    """
    try:
        yield
    except VlmrunError:
        raise
    except pickle.UnpicklingError as error:
        raise refused_pickle(error, where) from error
    except Exception as error:  # tokenizers raises plain Exception, and odd values of a model anything
        raise CheckpointError(f"{what} cannot be loaded: {said(error)}", where, fix) from error


def said(error: Exception) -> str:
    """The first line of another library's error, with its type where the text alone says nothing."""
    first = next(iter(str(error).strip().splitlines()), "")[:200]
    plain = isinstance(error, OSError | RuntimeError | ImportError | ValueError) or type(error) is Exception
    return first if first and plain else f"{type(error).__name__} {first}".rstrip()


def refused_pickle(error: Exception, where: str) -> CheckpointError:
    """That a pickle is more than tensors, so that it was not read."""
    asked = re.search(r"GLOBAL (\S+)|class (\S+)", str(error))
    what = f"asks for {asked[1] or asked[2]}, which is code" if asked else "is more than a table of tensors"
    return CheckpointError(f"this pickle {what}: it is not read", where, "have it saved as safetensors")


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """A JSON object in a file that belongs to a model folder.

    Raises:
        CheckpointError: when it is missing, no regular file, not UTF-8, not JSON, or no object.
    """
    regular.require(path, json=True)
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing", str(path), fix) from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}", str(path), fix) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not JSON: {said(error)}", str(path), fix) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is not a JSON object", str(path), fix)
    return value
