"""Importing timm where torchvision is not installed.

timm imports torchvision for its data pipeline and one norm, neither of which a tower uses; and PyPI's torchvision does
not go with a CPU build of torch. For the moment of the import, and only if torchvision is absent, empty stand-ins take
its place; they are gone afterwards, so that no other package takes them for the real one.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

_NAME = "torchvision"


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Answers imports of torchvision with stand-ins while it is open; does nothing where the real one is installed."""
    if _NAME in sys.modules or find_spec(_NAME) is not None:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == _NAME]:
            del sys.modules[name]


class _Named(type):
    """Classes whose every attribute is its own name: members of enums serve as dictionary keys at import."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Module(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            return _Named(name, (), {})
        full = f"{self.__name__}.{name}"
        return sys.modules.setdefault(full, _Module(full))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] != _NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is in it."""
