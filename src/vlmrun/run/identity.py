"""A stage's key: a hash of everything that can change its result, and of nothing else.

One rule gives resume (an unfinished key continues), reuse (a finished key is not run again) and change detection (a
changed value is another folder). What only moves work about is marked `Volatile` in the schema and left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vlmrun import artifact, kinds
from vlmrun.config import derived, marks
from vlmrun.config.marks import Contents, Parent, Source
from vlmrun.config.paths import locate
from vlmrun.config.schema import BenchmarkConfig, DataConfig, ModelConfig, RunConfig
from vlmrun.errors import CheckpointError
from vlmrun.graph import Planned

_WHOLE_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 16
_BLOCKS = 64
_PART_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")
_SHARD_FILES = ("*.tar", "split.yaml", "dataset.yaml")
_MODEL_FILES = (*_PART_FILES, "*.pt", "*.gguf")


def keys(planned: list[Planned], run: RunConfig) -> dict[str, str]:
    """Stage name -> key, for stages in order.

    A stage whose files are not here has none, and neither has what starts from it: the checks see to it that this is
    none of the stages that are run.
    """
    found: dict[str, str] = {}
    for item in planned:
        if not all(parent is None or parent in found for parent in item.parents.values()):
            continue
        try:
            found[item.name] = _hash(_identity(item, run, found))
        except (OSError, CheckpointError):
            if not run.only or item.name in run.only:
                raise
    return found


def stable(node: BaseModel) -> dict[str, Any]:
    """A node as plain values, without its volatile fields and those at a value that does nothing."""
    kept: dict[str, Any] = {}
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        if not marks.is_volatile(field) and not marks.is_neutral(field, value):
            kept[field.alias or name] = _plain(value)
    return {**kept, **(node.model_extra or {})}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return stable(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _identity(item: Planned, run: RunConfig, found: dict[str, str]) -> dict[str, Any]:
    stage = item.stage

    def data(node: BaseModel) -> dict[str, Any]:
        """The fields of a node that name data, by what the names stand for."""
        fields = [name for name, field in type(node).model_fields.items() if Source in field.metadata]
        return {
            name: [_data(run.data[source], found.get(item.prepared.get(source, ""))) for source in getattr(node, name)]
            for name in fields
        }

    values = stable(stage)
    for name, field in type(stage).model_fields.items():
        if Parent in field.metadata or Source in field.metadata:
            values.pop(name)  # names; what they stand for comes below
    values |= {key: _contents(locate(path)) for key, path in marks.named(stage, Contents)}
    identity: dict[str, Any] = {
        "kind": stage.kind,
        "version": kinds.of(stage).version,
        "stage": values,
        "parents": [found[name] if name else _artifact_key(path) for path, name in item.parents.items()],
    }
    if read := data(stage):
        if "template" in values:
            values["template"] = values["template"] or run.model.template
        identity |= {"precision": run.hardware.precision, "model": stable(run.model)} | read
        if not item.parents:
            identity |= _parts(run.model)
    for condition in marks.conditions(stage):
        for key, value in condition(stage, run).items():
            identity[key] = _plain(value) | data(value) if isinstance(value, BaseModel) else value
    return identity


def _parts(model: ModelConfig) -> dict[str, Any]:
    """What a stage without parents starts from: the files of the parts."""
    _, weights = derived.connector_weights(model.connector)
    file = Path(weights or "").expanduser()  # a finished stage, whose name is in the model, or a file
    connector = {"connector": _fingerprint(file)} if weights and file.is_file() else {}
    return {"parts": [_folders(part.model_extra or {}) for part in (model.llm, model.tower)], **connector}


def _hash(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _artifact_key(path: str) -> str:
    folder = Path(path).expanduser()
    found = artifact.read(folder)
    return found.key if found else _contents(folder)


def _contents(place: Path) -> str:
    """Fingerprint of a model in a foreign format, which has no key."""
    files = [place] if place.is_file() else sorted({f for pattern in _MODEL_FILES for f in place.rglob(pattern)})
    return _hash({os.path.relpath(file, place): _fingerprint(file) for file in files}) if files else "unfinished"


def _data(data: DataConfig, prepared: str | None) -> dict[str, Any]:
    kept: dict[str, Any] = {"format": data.format, "on_error": data.on_error, **_asked(data)}
    fields = type(data).model_fields
    # What decides which records and images are usable: under `on_error: skip` it decides what is trained.
    for name in ("split", "fields", "ignore_keys", "image_roots", "image_megapixels"):
        if not marks.is_neutral(fields[name], value := getattr(data, name)):
            kept[name] = value
    if prepared is not None:
        return {**kept, "source": prepared, "annotations": data.annotations, "images": data.images}
    # Images are known by their folder: millions of them are not read to compute a key.
    images = None if data.images is None else str(Path(data.images).expanduser().resolve())
    annotations = Path(data.annotations).expanduser()
    if derived.in_shards(data):
        return {**kept, "source": _shards(annotations)}
    return {**kept, "source": _fingerprint(annotations), "annotations": annotations.name, "images": images}


def _asked(data: DataConfig) -> dict[str, Any]:
    """How a benchmark is asked and scored; nothing of other data."""
    if not isinstance(data, BenchmarkConfig):
        return {}
    kept = stable(data)
    for key in ("format", "on_error", "annotations", "images", "prepare", "gold"):  # as for all data, or by content
        del kept[key]
    gold = None if data.gold is None else Path(data.gold).expanduser()
    files = [gold] if gold is not None and gold.is_file() else sorted(gold.rglob("*")) if gold is not None else []
    kept["gold"] = [_fingerprint(file) for file in files if file.suffix in (".json", ".jsonl", ".txt")]
    return {"benchmark": kept}


def _shards(folder: Path) -> dict[str, str]:
    """Fingerprints of shards and of what says how they are read."""
    files = sorted(file for pattern in _SHARD_FILES for file in folder.rglob(pattern))
    return {file.relative_to(folder).as_posix(): _fingerprint(file) for file in files}


def _folders(arguments: dict[str, Any]) -> list[str]:
    """Fingerprints of the folders a part is read from; one built in-process is described by its arguments alone."""
    found = []
    for argument in ("path", "tokenizer"):
        if arguments.get(argument) is not None:
            folder = locate(arguments[argument])
            files = sorted({file for pattern in _PART_FILES for file in folder.glob(pattern)})
            found += [f"{file.name}:{_fingerprint(file)}" for file in files]
    return found


def _fingerprint(path: Path) -> str:
    """Digest of a file; of a large one, of its size and of blocks spread evenly over it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        if size <= _WHOLE_BYTES:
            digest.update(handle.read())
        else:
            for number in range(_BLOCKS):
                handle.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
                digest.update(handle.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]
