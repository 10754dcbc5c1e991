"""The blocks of a transformer, by name, to train only the last of them."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from vlmrun.errors import ConfigError


def names(module: nn.Module) -> list[str]:
    """Names of the blocks: the members of the outermost list of like modules, in order."""
    for name, child in module.named_modules():
        members = list(child.children())
        alike = len({type(member) for member in members}) == 1
        if isinstance(child, nn.ModuleList | nn.Sequential) and alike and any(True for _ in child.parameters()):
            return [f"{name}.{index}" for index in range(len(members))]
    return []


def last(module: nn.Module, n: int, where: str, *, without: Collection[int] = ()) -> tuple[str, ...]:
    """Beginnings of the names of everything in the last n blocks.

    Args:
        where: the key that asks for them.
        without: ids of parameters that are not used; blocks that have no others do not count.

    Raises:
        ConfigError: when there are fewer.
    """
    found = [
        name for name in names(module) if any(id(p) not in without for p in module.get_submodule(name).parameters())
    ]
    if len(found) < n:
        raise ConfigError(f"there are {len(found)} blocks to train the last {n} of", where, f"{len(found)}, or null")
    return tuple(f"{name}." for name in found[-n:])
