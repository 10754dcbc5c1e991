"""Which families transformers has as causal language models, read from its source: importing it would load torch."""

from __future__ import annotations

import ast
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_TABLES = "models/auto/modeling_auto.py"
_NAME = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@cache
def names() -> frozenset[str]:
    """Every `model_type` of `AutoModelForCausalLM`; none where the installed transformers keeps them elsewhere."""
    # On the path, not among imported modules: transformers puts another module in its own place.
    package = PathFinder.find_spec("transformers")
    file = None if package is None or package.origin is None else Path(package.origin).parent / _TABLES
    if file is None or not file.is_file():
        return frozenset()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == _NAME for t in node.targets):
            pairs = (pair for pair in ast.walk(node.value) if isinstance(pair, ast.Tuple) and len(pair.elts) == 2)
            keys = (pair.elts[0] for pair in pairs)
            return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return frozenset()
