"""What a recipe, a data entry or a model's name asks the hub for, and where it goes: where `check` looks for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlmrun.config import derived, hub, paths
from vlmrun.config.schema import BenchmarkConfig, DataConfig, RunConfig
from vlmrun.errors import CheckpointError
from vlmrun.names import PARTS

_ARCHIVE = r"\.(?:zip|tar|tar\.gz|tar\.bz2|tar\.xz|tgz)"
_PART = r"[._-]?part[._-]?\w+|[._-](?:[a-z]{2}|\d+)"  # as split names them; x.tar.md5 is none
_WEIGHTS = (".safetensors", ".bin")
_NOT_NEEDED = (".msgpack", ".h5", ".ot", ".onnx", ".gguf", ".pth", ".tflite", ".png", ".jpg", ".md")


@dataclass(frozen=True)
class Model:
    """A model of the hub, which goes to the hub's cache.

    Args:
        repo: OWNER/NAME.
        part: what it is in the recipe: `llm`, `tower`; empty for one that was named by itself.
    """

    repo: str
    part: str = ""
    kind: str = "model"

    def is_there(self) -> bool:
        """Whether `check` finds it."""
        try:
            paths.locate(self.repo)
        except CheckpointError:
            return False
        return True

    def destination(self) -> str:
        """Where it goes, for a reader."""
        return "the cache of Hugging Face (HF_HOME)"


@dataclass(frozen=True)
class Data:
    """A data set of the hub, which goes where its entry says that its files are.

    Args:
        name: of the entry.
        by_hand: how to get what the hub does not have.
    """

    repo: str
    name: str
    annotations: Path
    images: Path | None
    license: str
    by_hand: str
    kind: str = "dataset"

    def is_there(self) -> bool:
        """Whether `check` finds it."""
        return self.annotations.is_file() and (self.images is None or self.images.is_dir())

    def destination(self) -> str:
        """Where it goes, for a reader."""
        return str(self.annotations) + ("" if self.images is None else f", {self.images}/")


def of_run(run: RunConfig) -> Iterator[Model | Data]:
    """Models and data that a run reads, each once."""
    seen: set[str] = set()
    for part in PARTS:
        path = getattr(run.model, part).arguments.get("path")
        if isinstance(path, str) and hub.is_model_id(path) and not Path(path).is_dir() and path not in seen:
            seen.add(path)
            yield Model(path, part)
    used = {source for stage in run.stage.values() for source in derived.sources(stage)}
    for name, config in run.data.items():
        found = of_data(name, config) if name in used else None
        if found is not None:
            yield found


def of_data(name: str, config: DataConfig) -> Data | None:
    """A data entry's files on the hub; None: they are made here, or the hub does not have them."""
    repo = hub.dataset_id(config.about.url) if config.about is not None else None
    is_file = not isinstance(config, BenchmarkConfig) and not derived.in_shards(config)
    if config.about is None or repo is None or config.prepare is not None or not is_file:
        return None
    images = None if config.images is None else Path(config.images).expanduser()
    annotations = Path(config.annotations).expanduser()
    return Data(repo, name, annotations, images, config.about.licence, config.about.fetch)


def model_files(names: Iterable[str]) -> list[str]:
    """The files of a model that are needed: one kind of weights, no other frameworks' copies; `config.json` last.

    A model counts as there once its `config.json` is, so an interrupted download is not taken for a model.
    """
    top = [name for name in names if "/" not in name and not name.startswith(".")]
    kind = next((ending for ending in _WEIGHTS if any(name.endswith(ending) for name in top)), "")
    others = tuple(ending for ending in _WEIGHTS if ending != kind)
    found = [name for name in top if not name.endswith((*_NOT_NEEDED, *others)) and not name.endswith(".index.json")]
    found += [name for name in top if name.endswith(f"{kind}.index.json")]
    return sorted(found, key=lambda name: (name == "config.json", name))


def annotation_file(item: Data, names: Iterable[str]) -> str | None:
    """The file of the data set that becomes the entry's annotations: the one of the longest equal path, or else one
    that the entry's own words name (`rename chat.json to ...`)."""
    listed = [PurePosixPath(name) for name in names]
    wanted = PurePosixPath(item.annotations.as_posix()).parts
    same = [path for path in listed if wanted[-len(path.parts) :] == path.parts]
    same = same or [path for path in listed if path.name == item.annotations.name]
    named = [path for path in listed if path.name in re.findall(r"[\w.-]+\.jsonl?\b", item.by_hand)]
    best = max(same or named, key=lambda path: len(path.parts), default=None)
    return None if best is None else str(best)


def archive_files(item: Data, annotations: str, names: Iterable[str]) -> list[str]:
    """The archive, or else its parts in order, that holds the entry's images: beside the annotations, named as the
    folder is. Empty: the images come from elsewhere."""
    if item.images is None:
        return []
    folder = PurePosixPath(annotations).parent
    pattern = re.compile(rf"{re.escape(item.images.name)}({_ARCHIVE})({_PART})?")
    beside = [name for name in names if PurePosixPath(name).parent == folder]
    found = [(match, name) for name in beside if (match := pattern.fullmatch(PurePosixPath(name).name))]
    whole = sorted(name for match, name in found if match[2] is None)
    if whole or not found:
        return whole[:1]
    first = min(match[1] for match, _ in found)
    parts = [name for match, name in found if match[1] == first]
    return sorted(parts, key=lambda name: (len(name), name))  # part2 before part10
