"""Overrides of a run that is being typed: groups, keys, and values that have names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlmrun.config import catalog
from vlmrun.config.catalog import Catalog

# Groups that are not chosen as GROUP=OPTION on a command line: added with a plus, or of a verb of its own.
_ADDED = ("recipe", "pipeline")
_ELSEWHERE = (*_ADDED, "judge", "evaluate", "stage/method")
_PARTS = ("llm", "tower", "connector")
_NAMES_STAGES = ("init_from", "models", "adapters")


class Line:
    """The words before the one that is typed.

    Args:
        words: overrides and options.
    """

    def __init__(self, words: Sequence[str]) -> None:
        folders = [Path(after) for word, after in pairwise(words) if word in ("--config-dir", "-cd")]
        folders += [Path(word.partition("=")[2]) for word in words if word.startswith("--config-dir=")]
        self.catalog = Catalog([folder for folder in folders if folder.is_dir()])
        self._given = {key: value for key, mark, value in (word.lstrip("+").partition("=") for word in words) if mark}
        self._chosen = self._choices()

    def candidates(self, current: str) -> Iterator[str]:
        """What the override that is typed may become; a word that ends in `=`, `.` or `[` is not complete."""
        sign = re.match(r"[+~]*", current)
        lead = sign[0] if sign else ""
        key, mark, value = current[len(lead) :].partition("=")
        if mark:
            start = re.match(r".*[\[,]|", value)  # lists and sweeps: what follows the last comma
            before = f"{lead}{key}={start[0] if start else ''}"
            yield from (before + option for option in self._values(key))
        elif lead == "+":
            yield from (f"+{group}=" for group in _ADDED)
        else:
            yield from (f"+{group}=" for group in _ADDED if group not in self._given and not lead)
            yield from (f"{lead}{group}=" for group in self.catalog.groups() if group not in _ELSEWHERE)
            yield from (lead + name for name in self._keys(key))

    def _values(self, key: str) -> list[str]:
        group = key.partition("@")[0]
        last = key.rpartition(".")[2]
        if group in self.catalog.groups():
            return self.catalog.options(group)
        if key == "only" or last in _NAMES_STAGES:
            return list(self._stages())
        if key.startswith("stage.") and last == "data":
            return [str(name) for name in self._chosen.get("data") or ()]
        return ["true", "false"] if isinstance(self._node(key), bool) else []

    def _keys(self, typed: str) -> Iterator[str]:
        before, dot, _ = typed.rpartition(".")
        node = self._node(before) if dot else self._tree()
        if isinstance(node, dict):
            for name, value in node.items():
                yield f"{before}{dot}{name}{'.' if isinstance(value, dict) and value else '='}"

    def _node(self, key: str) -> Any:
        node: Any = self._tree()
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        return node

    def _choices(self) -> dict[str, Any]:
        """Group -> what is chosen: by the recipe or the pipeline on the line, then by the line itself."""
        given = {key: _list(value) if value.startswith("[") else value for key, value in self._given.items()}
        content: dict[str, Any] = {}
        for group in _ADDED:
            content = content or self.catalog.option(group, self._given.get(group, ""))
        return self.catalog.chosen(content) | {(f"/{key}" if "@" in key else key): given[key] for key in given}

    def _stages(self) -> dict[str, str]:
        return catalog.stages(self._chosen)

    def _tree(self) -> dict[str, Any]:
        """The run's keys, as far as files name them."""
        option = self.catalog.option
        top = self.catalog.plain("config") | {
            "model": self._model(),
            "hardware": _keys(option("hardware", str(self._chosen.get("hardware", "cpu")))),
            "data": {str(name): _keys(option("data", str(name))) for name in self._chosen.get("data") or ()},
            "stage": {name: _keys(option("stage", preset)) for name, preset in self._stages().items()},
        }
        return _keys(top)

    def _model(self) -> dict[str, Any]:
        model = self.catalog.option("model", str(self._chosen.get("model", "_vlm")))
        parts = self.catalog.chosen(model) | {
            part: self._chosen[f"model/{part}"] for part in _PARTS if f"model/{part}" in self._chosen
        }
        options = {
            part: _keys(self.catalog.option(f"model/{part}", str(parts[part]))) for part in _PARTS if part in parts
        }
        return _keys(model) | options


def _keys(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is Hydra's: the defaults list, `_target_`, its own settings."""
    return {key: value for key, value in values.items() if key not in ("defaults", "hydra") and not key.startswith("_")}


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.strip("[]").split(",") if word.strip()]
