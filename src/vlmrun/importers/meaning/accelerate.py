"""What `accelerate launch` adds: its options, and those of its YAML file where a flag does not say otherwise."""

from __future__ import annotations

from typing import Any

import yaml

from vlmrun.importers.launch import Launcher
from vlmrun.importers.meaning.draft import Draft

_TAKEN = (
    "num_processes",
    "num_machines",
    "mixed_precision",
    "zero_stage",
    "offload_optimizer_device",
    "offload_param_device",
    "gradient_clipping",
    "deepspeed_config_file",
)


def read(draft: Draft, link: Launcher) -> dict[str, str]:
    """The values that count, as text; what became of the file is noted."""
    values: dict[str, str] = {}
    path = link.value("--config_file")
    if path is not None:
        text = draft.read_file(path)
        loaded = _content(text) if text is not None else None
        found = None if loaded is None else _counting(loaded)
        if found is None:
            missing = "is not there" if text is None else "is no YAML of accelerate"
            draft.launched["config_file"] = (
                "unsupported",
                f"{path} {missing}: precision and DeepSpeed as the flags say",
            )
        elif loaded is not None:
            draft.files.append(("accelerate", path, loaded))
            values = found
            draft.launched["config_file"] = ("taken", ", ".join(f"{name} {value}" for name, value in values.items()))
    for name in _TAKEN:
        given = link.value(f"--{name}")
        if given:
            values[name] = given
            draft.launched[name] = ("taken", "as the launcher says")
    return values


def _content(text: str) -> dict[str, Any] | None:
    try:
        loaded: Any = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return None
    return {str(name): value for name, value in loaded.items()} if isinstance(loaded, dict) else None


def _counting(loaded: dict[str, Any]) -> dict[str, str]:
    inner = loaded.get("deepspeed_config")
    merged = {**loaded, **(inner if isinstance(inner, dict) else {})}
    return {name: str(merged[name]) for name in _TAKEN if merged.get(name) not in (None, "")}
