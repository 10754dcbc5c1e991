"""Where a named model part lies here: shipped with the package, a local folder, or the Hugging Face cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmrun import regular
from vlmrun.errors import CheckpointError, suggest

BUILTIN = "builtin:"
_SPLIT = "-native"  # ends the names of folders that recipes expect a published model to be split into


def assets_dir() -> Path:
    """The folder of weights that ship with the package."""
    return Path(__file__).resolve().parents[1] / "assets"


def locate(path: str) -> Path:
    """The folder a part's `path` names.

    Args:
        path: `builtin:NAME`, a local folder, or a hub id whose files are in the local cache. Nothing is downloaded.

    Raises:
        CheckpointError: when there is no such folder, with what to do about it.
    """
    if path.startswith(BUILTIN):
        name = path.removeprefix(BUILTIN)
        folder = assets_dir() / name
        if folder.is_dir() and folder.parent == assets_dir():
            return folder
        names = [p.name for p in assets_dir().glob("*") if p.is_dir()]
        raise CheckpointError(f"no built-in part {name!r}", path, suggest(name, names, noun="built-in parts"))
    try:
        local = Path(path).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise CheckpointError(f"no model folder {path!r} here", path, "there is no such user") from error
    if local.is_dir():
        return local
    cached = _cached_snapshot(path)
    if cached is not None:
        return cached
    if Path(path).parent.name.endswith(_SPLIT):
        whole = Path(path).parent
        fix = (
            f"split the published folder into parts: vlmrun convert FOLDER {whole} --to native (docs/guides/minicpm.md)"
        )
        raise CheckpointError(f"no model folder {path!r} here", path, fix)
    raise CheckpointError(
        f"no model folder {path!r} here",
        path,
        f"give a local folder, or fetch it once while online: hf download {path}"
        if looks_like_hub_id(path)
        else "give an existing folder that holds config.json, or a hub id such as openai/clip-vit-large-patch14-336",
    )


def read_config(path: str) -> dict[str, Any]:
    """The `config.json` of the part at `path`."""
    file = locate(path) / "config.json"
    regular.require(file, json=True)
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            "config.json is missing", str(file), "point `path` at a Hugging Face model folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"config.json is not JSON: {error}", str(file), "fetch the model again") from error
    except OSError as error:
        raise CheckpointError(f"config.json cannot be read: {error.strerror}", str(file), "look at the file") from error
    if not isinstance(config, dict):
        raise CheckpointError("config.json is not a JSON object", str(file), "fetch the model again")
    return config


def looks_like_hub_id(path: str) -> bool:
    """Whether a text may be `OWNER/NAME` of the hub, as it is no path of this machine."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _cached_snapshot(path: str) -> Path | None:
    if not looks_like_hub_id(path):
        return None
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{path.replace('/', '--')}").is_dir():
        return None  # as in most checks, and the next import takes a tenth of their time
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(path, "config.json")
    except ValueError:  # not a hub id after all
        return None
    return Path(found).parent if isinstance(found, str) else None


def packed(config: dict[str, Any]) -> dict[str, Any] | None:
    """How a model's own config.json says that bitsandbytes holds its weights: `bits`, `type`, `double`; None: it does
    not.

    Raises:
        CheckpointError: when they are quantized by something else.
    """
    said = config.get("quantization_config")
    if not said:
        return None
    if not isinstance(said, dict) or not (said.get("load_in_4bit") or said.get("load_in_8bit")):
        method = said.get("quant_method") if isinstance(said, dict) else said
        raise CheckpointError(
            f"the weights are quantized already, by {method!r}",
            "config.json",
            "give the full-precision model, or one of 4 bits",
        )
    if said.get("load_in_8bit"):
        return {"bits": 8, "type": "nf4", "double": False}  # the type is not used
    double = bool(said.get("bnb_4bit_use_double_quant"))
    return {"bits": 4, "type": said.get("bnb_4bit_quant_type", "fp4"), "double": double}
