"""Argument files of other trainers: LLaMA-Factory's YAML, ms-swift's options, transformers' own; values only."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlmrun import back
from vlmrun.errors import ConfigError
from vlmrun.importers.launch import Flag, Launch, Launcher
from vlmrun.importers.shell.commands import Command

MAX_SIZE = 4_000_000
Values = list[tuple[str, Any, int]]  # name, value, line


def read(kind: str, words: Sequence[str]) -> Launch:
    """The launch that an argument file stands for, its values as flags.

    Raises:
        ConfigError: when the file is not of that kind.
    """
    values, name = READERS[kind](words)
    flags = tuple(_flag(key, value, line) for key, value, line in values if value is not None)
    command = Command((kind,), (1,), {}, ".", name)
    return Launch(command, (Launcher("deepspeed", ()),), f"{kind} {name}", flags, (), shortened=kind == "swift")


def _flag(name: str, value: Any, line: int) -> Flag:
    if isinstance(value, bool):
        return Flag(f"--{name}", ("true" if value else "false",), line)
    if isinstance(value, list):
        return Flag(f"--{name}", (",".join(map(str, value)),), line)
    return Flag(f"--{name}", (json.dumps(value) if isinstance(value, dict) else str(value),), line)


def _file(words: Sequence[str], kind: str) -> Path:
    if len(words) != 1 or not Path(words[0]).exists():
        there = f"no {words[0]!r}" if len(words) == 1 else f"{len(words)} files"
        raise ConfigError(f"--from {kind} takes one file, {there}", "command line", f"vlmrun import --from {kind} FILE")
    path = Path(words[0])
    if path.is_file() and path.stat().st_size > MAX_SIZE:
        raise ConfigError(f"{path.stat().st_size:,} bytes are no arguments", str(path), "give the file of arguments")
    return path


def _llamafactory(words: Sequence[str]) -> tuple[Values, str]:
    path = _file(words, "llamafactory")
    try:
        node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"not YAML: {str(error).splitlines()[0]}", str(path), "give LLaMA-Factory's FILE.yaml"
        ) from None
    if not isinstance(loaded, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError("not a list of arguments: KEY: VALUE lines", str(path), "give LLaMA-Factory's FILE.yaml")
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return [(str(key), value, lines.get(str(key), 1)) for key, value in loaded.items()], path.name


def _swift(words: Sequence[str]) -> tuple[Values, str]:
    found: Values = []
    for word in words:
        if word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            found.append((name, value if sign else True, 1))
        elif found:
            name, before, line = found[-1]
            found[-1] = (name, word if before is True else f"{before},{word}", line)
        elif word not in ("swift", "sft", "pt"):
            raise ConfigError(
                f"{word!r} belongs to no option", "command line", "vlmrun import --from swift -- --model PATH ..."
            )
    if not found:
        raise ConfigError("no options of swift", "command line", "vlmrun import --from swift -- --model PATH ...")
    return found, "swift"


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}", str(path), "give the file that the Trainer wrote") from None
    if not isinstance(loaded, dict):
        raise ConfigError("not a table of values", str(path), "give the file that the Trainer wrote")
    return loaded


def _trainer_args(words: Sequence[str]) -> tuple[Values, str]:
    path = _file(words, "trainer_args")
    if path.suffix == ".json":
        values = _json(path)
    else:
        values = back.training_args(path)
    return [(name, value, 1) for name, value in values.items() if _says_something(name, value)], path.name


def _says_something(name: str, value: Any) -> bool:
    """Every field of the dataclass is in the file; empty ones and its own working state say nothing."""
    return not name.startswith("_") and value not in (None, "", [], {}) and name not in ("distributed_state", "n_gpu")


_SAME = ("max_steps", "num_train_epochs", "logging_steps", "save_steps", "eval_steps")
_STATE = {"train_batch_size": "per_device_train_batch_size", **{name: name for name in _SAME}}


def _trainer_state(words: Sequence[str]) -> tuple[Values, str]:
    path = _file(words, "trainer_state")
    path = path / "trainer_state.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError("no trainer_state.json there", str(path.parent), "give a checkpoint's folder")
    state = _json(path)
    values: Values = [(ours, state[theirs], 1) for theirs, ours in _STATE.items() if state.get(theirs)]
    history = state.get("log_history")
    rates = (
        [entry.get("learning_rate") for entry in history if isinstance(entry, dict)]
        if isinstance(history, list)
        else []
    )
    numbers = [rate for rate in rates if isinstance(rate, int | float)]
    if numbers:
        values.append(("learning_rate", max(numbers), 1))
    others = {name: value for name, value in state.items() if name not in _STATE and value not in (None, [], {})}
    rest: Values = [(name, len(value) if isinstance(value, list) else value, 1) for name, value in others.items()]
    if not values:
        raise ConfigError("no values of a training in it", str(path), "give a checkpoint's folder")
    return [*values, *rest], path.name


READERS: dict[str, Callable[[Sequence[str]], tuple[Values, str]]] = {
    "llamafactory": _llamafactory,
    "swift": _swift,
    "trainer_args": _trainer_args,
    "trainer_state": _trainer_state,
}
