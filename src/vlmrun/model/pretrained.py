"""Loading models of transformers so that whatever does not fit is an error, not a random weight."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vlmrun.errors import CheckpointError
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
    try:
        with quietly():
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
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise _unmade(error, str(folder)) from error
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
    with quietly():
        maker = getattr(model_class, "_from_config", None) or model_class.from_config
        try:
            return maker(config, dtype=dtype, attn_implementation=attention).eval()
        except (ValueError, ImportError) as error:
            raise _unmade(error, type(config).__name__) from error


def _unmade(error: Exception, where: str) -> CheckpointError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"the model cannot be loaded: {first}",
        where,
        "fetch or make it again; if the message names attention, choose another hardware.attention",
    )


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """A JSON file that belongs to a model folder."""
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing", str(path), fix) from error
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON: {error}", str(path), fix) from error
    return value
