"""What `conf/` and the folders beside it offer, read from their files as they are: nothing is composed.

Neither Hydra nor OmegaConf is loaded, so that completion in a shell answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from vlmrun import build

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there


@dataclass(frozen=True)
class Recipe:
    """What the head and the choices of a recipe file say."""

    name: str
    about: str
    model: str
    pipeline: str
    data: tuple[str, ...]
    stages: tuple[str, ...]
    gpus: str
    source: str


def conf_dir() -> Path:
    """The shipped `conf/`: inside the installed package, or at the root of a checkout."""
    packaged = Path(__file__).resolve().parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "conf"


def search_path(extra: Sequence[Path] = ()) -> list[Path]:
    """Folders that add options to the groups: those of `--config-dir`, then `conf/` of installed plugins."""
    plugins = []
    for package in build.plugins():
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / "conf"
            plugins += [folder] if folder.is_dir() else []
    return [*(path.resolve() for path in extra), *plugins]


class Catalog:
    """The options of all groups.

    Args:
        extra: folders of `--config-dir`.
    """

    def __init__(self, extra: Sequence[Path] = ()) -> None:
        self.folders = [conf_dir(), *search_path(extra)]

    def groups(self) -> list[str]:
        """Folders that options are chosen from: `model`, `model/connector`, ..."""
        found = {
            folder.relative_to(root).as_posix()
            for root in self.folders
            for folder in root.rglob("*")
            if folder.is_dir() and any(folder.glob("[!_]*.yaml"))
        }
        return sorted(found)

    def options(self, group: str) -> list[str]:
        """Names of a group's options, without those that only others start from (`_NAME`)."""
        return sorted({file.stem for root in self.folders for file in (root / group).glob("[!_]*.yaml")})

    def recipes(self) -> dict[str, Recipe]:
        """All recipes by name."""
        return {name: self.recipe(name) for name in self.options("recipe")}

    def recipe(self, name: str) -> Recipe:
        """One recipe.

        Args:
            name: an option of the group `recipe`.
        """
        file = self.file("recipe", name)
        text = file.read_text("utf-8") if file else ""
        head = [line[1:].strip() for line in text.partition("defaults:")[0].splitlines() if line.startswith("#")][1:]
        content = _plain(text)
        chosen = self.chosen(content)
        return Recipe(
            name=name,
            about=head[0].partition("   vlmrun")[0] if head else "",
            model=str(chosen.get("model", "")),
            pipeline=str(chosen.get("/pipeline", "")),
            data=tuple(chosen.get("data") or ()),
            stages=tuple(stages(chosen)),
            gpus=self._gpus(str(chosen.get("hardware", "cpu")), content.get("hardware") or {}),
            source=next((line.removeprefix("Source: ") for line in head if line.startswith("Source: ")), ""),
        )

    def chosen(self, content: dict[str, Any]) -> dict[str, Any]:
        """Group -> option of a file's defaults list. What a recipe chooses goes before what its pipeline chooses."""
        found: dict[str, Any] = {}
        for entry in content.get("defaults") or []:
            if isinstance(entry, dict):
                found |= {str(key).removeprefix("override /"): value for key, value in entry.items()}
        pipeline = found.get("/pipeline")
        return found if pipeline is None else self.chosen(self.option("pipeline", pipeline)) | found

    def option(self, group: str, name: str) -> dict[str, Any]:
        """An option's values over those of the files it starts from (`- NAME@_here_`); empty without such a file."""
        file = self.file(group, name)
        own = _plain(file.read_text("utf-8")) if file else {}
        bases = [entry for entry in own.get("defaults") or [] if isinstance(entry, str) and entry.endswith("@_here_")]
        values: dict[str, Any] = {}
        for base in bases:
            values = _over(values, self.option(group, base.removesuffix("@_here_")))
        return _over(values, own)

    def plain(self, name: str) -> dict[str, Any]:
        """A file of the shipped `conf/` that is no option, such as `config`."""
        return _plain((self.folders[0] / f"{name}.yaml").read_text("utf-8"))

    def file(self, group: str, name: str) -> Path | None:
        """The file of an option; None: there is none."""
        return next((file for root in self.folders if (file := root / group / f"{name}.yaml").is_file()), None)

    def _gpus(self, option: str, changes: dict[str, Any]) -> str:
        values = self.option("hardware", option) | changes
        n_ranks = int(values.get("nodes", 1)) * int(values.get("ranks_per_node", 1))
        return "cpu" if values.get("gpu") == "cpu" else f"{n_ranks} x {values.get('gpu', option)}"


def stages(chosen: dict[str, Any]) -> dict[str, str]:
    """Stage -> the preset that it starts from, of what a defaults list chooses."""
    mark = "/stage@stage."
    listed = {str(name): str(name) for name in chosen.get("stage") or ()}
    return listed | {key.removeprefix(mark): str(preset) for key, preset in chosen.items() if key.startswith(mark)}


def _over(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Values of a file over those that it starts from, key by key."""
    both = [key for key in own if isinstance(own[key], dict) and isinstance(values.get(key), dict)]
    return values | own | {key: _over(values[key], own[key]) for key in both}


def _plain(text: str) -> dict[str, Any]:
    """A YAML file as it is."""
    content = yaml.load(text, Loader=_LOADER)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
