"""A stage's key: a hash of everything that can change its result, and of nothing else.

One rule gives resume (an unfinished key continues), reuse (a finished key is not run again) and change detection (a
changed value is another folder). What only moves work about is marked `Volatile` in the schema and left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vlmrun import artifact
from vlmrun.config import derived
from vlmrun.config.paths import locate
from vlmrun.config.schema import DataConfig, EvaluateStage, RunConfig, TrainStage, Volatile
from vlmrun.run.graph import Planned

# Raised when the code of a kind changes what it makes from the same configuration.
KIND_VERSION = {"prepare": 1, "train": 1, "merge": 1, "average": 1, "evaluate": 1}

_EDGE_BYTES = 1 << 16
_WEIGHT_FILES = ("*.json", "*.safetensors", "*.bin", "*.model")


def keys(planned: list[Planned], run: RunConfig) -> dict[str, str]:
    """Stage name -> key, for stages in order. Data files must exist by now (the checks see to it)."""
    found: dict[str, str] = {}
    for item in planned:
        found[item.name] = _hash(_identity(item, run, found))
    return found


def stable(node: BaseModel) -> dict[str, Any]:
    """A node as plain values, without its volatile fields."""
    kept: dict[str, Any] = {}
    for name, field in type(node).model_fields.items():
        if any(mark is Volatile for mark in field.metadata):
            continue
        value = getattr(node, name)
        kept[field.alias or name] = stable(value) if isinstance(value, BaseModel) else value
    return {**kept, **(node.model_extra or {})}


def _identity(item: Planned, run: RunConfig, found: dict[str, str]) -> dict[str, Any]:
    stage = stable(item.stage)
    for reference in ("init_from", "models", "data"):
        stage.pop(reference, None)  # names; what they stand for comes below
    identity: dict[str, Any] = {
        "kind": item.stage.kind,
        "version": KIND_VERSION[item.stage.kind],
        "stage": stage,
        "parents": [found[name] if name else _artifact_key(path) for path, name in item.parents.items()],
    }
    if isinstance(item.stage, TrainStage | EvaluateStage):
        stage["template"] = derived.template(item.stage, run.model)
        identity["precision"] = run.hardware.precision
        identity["model"] = stable(run.model)
        identity["data"] = [_data(run.data[name], found.get(item.prepared.get(name, ""))) for name in item.stage.data]
        if not item.parents:
            identity["parts"] = [_folder(part.model_extra or {}) for part in (run.model.llm, run.model.tower)]
    if isinstance(item.stage, TrainStage) and item.stage.loss == "micro_mean":
        # A mean of means depends on how the batch is cut; token_mean does not.
        identity["cut"] = [item.stage.micro_batch, derived.ranks(run.hardware)]
    return identity


def _hash(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _artifact_key(path: str) -> str:
    found = artifact.read(Path(path).expanduser())
    return found.key if found else "unfinished"


def _data(data: DataConfig, prepared: str | None) -> dict[str, Any]:
    source = prepared or _edges(Path(data.annotations).expanduser())
    return {"format": data.format, "on_error": data.on_error, "file": Path(data.annotations).name, "source": source}


def _folder(arguments: dict[str, Any]) -> list[str]:
    """Fingerprint of a model folder; a part built in-process is described by its arguments alone."""
    path = arguments.get("path")
    if path is None:
        return []
    folder = locate(path)
    files = sorted({file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)})
    return [f"{file.name}:{_edges(file)}" for file in files]


def _edges(path: Path) -> str:
    """Size and digest of both ends of a file: enough to notice another file, cheap for a large one."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        digest.update(handle.read(_EDGE_BYTES))
        if size > 2 * _EDGE_BYTES:
            handle.seek(-_EDGE_BYTES, 2)
            digest.update(handle.read(_EDGE_BYTES))
    return digest.hexdigest()[:16]
