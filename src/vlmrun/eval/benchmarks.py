"""Benchmarks by name: a YAML file of `conf/benchmark`, of a plugin, or of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from vlmrun.config.catalog import conf_dir, search_path
from vlmrun.config.schema import BenchmarkConfig
from vlmrun.errors import ConfigError, Problem, suggest

_COMMON = "_common.yaml"


def names(extra: Sequence[Path] = ()) -> dict[str, Path]:
    """Every benchmark's file by name."""
    folders = [folder / "benchmark" for folder in (conf_dir(), *search_path(extra))]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.yaml"))]
    return {file.stem: file for file in files if not file.stem.startswith("_")}


def load(name: str, changes: Sequence[str] = ()) -> tuple[str, BenchmarkConfig]:
    """A benchmark's name and values.

    Args:
        name: one of `names()`, or the path of a YAML file.
        changes: `key=value` that override the file.

    Raises:
        ConfigError: for an unknown name, with the nearest; for values that the schema does not take.
    """
    known = names()
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else known.get(name)
    if file is None or not file.is_file():
        raise ConfigError(f"no benchmark {name!r}", "--benchmark", suggest(name, known, noun="benchmarks"))
    try:
        common = OmegaConf.load(conf_dir() / "benchmark" / _COMMON)
        own = OmegaConf.create({key: value for key, value in OmegaConf.load(file).items() if key != "defaults"})
        tree = OmegaConf.merge(common, own, OmegaConf.from_dotlist(list(changes)))
        values: Any = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0], str(file), "give that value: --set KEY=VALUE") from error
    try:
        return file.stem, BenchmarkConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_problem(entry, file) for entry in error.errors()]) from error


def _problem(entry: Any, file: Path) -> Problem:
    key = ".".join(str(part) for part in entry["loc"])
    return Problem(f"{key}: {entry['msg'].lower()}", str(file), "docs/guides/benchmarks.md lists the keys")
