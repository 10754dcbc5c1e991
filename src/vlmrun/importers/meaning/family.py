"""Which project's script a command is: by the flags that only one project has, then by the entry's path."""

from __future__ import annotations

from typing import Any

from vlmrun.errors import ConfigError, suggest
from vlmrun.importers.launch import Launch, table
from vlmrun.importers.meaning.draft import title

_KOREAN = ("kollava", "ko_chat", "ko_llava", "ko-vicuna", "ko_vicuna", "llama-2-ko", "synatra")


def is_training(launch: Launch) -> bool:
    """Whether a command trains: it has a batch or a learning rate."""
    names = {flag.name.lstrip("-") for flag in launch.flags}
    marks = {
        "per_device_train_batch_size",
        "learning_rate",
        "micro-batch-size",
        "train-iters",
        "num_train_epochs",
        "lr",
    }
    return bool(names & marks)


def detect(launch: Launch, asked: str | None = None) -> str:
    """The family of a training command.

    Raises:
        ConfigError: when flags of two families stand side by side, or the asked one does not exist.
    """
    families: dict[str, Any] = table("flags")["families"]
    if asked is not None:
        if asked not in families:
            raise ConfigError(f"no family {asked!r}", "--family", suggest(asked, families, noun="families"))
        return asked
    names = {flag.name.lstrip("-") for flag in launch.flags}
    marked = {name: names & set(family["flags"]) for name, family in families.items() if names & set(family["flags"])}
    if "vila" in marked or "tinyllava" in marked:  # forks of LLaVA that took others' names
        marked = {name: own for name, own in marked.items() if name in ("vila", "tinyllava")}
    if len(marked) > 1:
        shown = "; ".join(f"{title(name)}: --{', --'.join(sorted(own))}" for name, own in marked.items())
        raise ConfigError(
            f"flags of two families in one command: {shown}",
            f"{launch.command.file}, line {launch.command.line}",
            f"say whose script it is: --family {sorted(marked)[0]}",
        )
    if marked:
        return next(iter(marked))
    entry = launch.entry.replace(".", "/")
    by_path = [name for name, family in families.items() if family["entry"] and family["entry"] in entry + "/"]
    text = " ".join(launch.command.argv).lower()
    if any(word in text for word in _KOREAN) and (not by_path or by_path[0] == "llava"):
        return "kollava"
    if by_path:
        return by_path[0]
    return "llava" if {"vision_tower", "mm_projector_type"} & names else "hf"
