"""Which families transformers has as causal language models, read from its source: importing it would load torch."""

from __future__ import annotations

import ast
from functools import cache

from vlmrun import signature

_TABLES = "transformers.models.auto.modeling_auto"
_NAME = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@cache
def names() -> frozenset[str]:
    """Every `model_type` of `AutoModelForCausalLM`; none where the installed transformers keeps them elsewhere."""
    file = signature.module_file(_TABLES)
    if file is None:
        return frozenset()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == _NAME for t in node.targets):
            pairs = (pair for pair in ast.walk(node.value) if isinstance(pair, ast.Tuple) and len(pair.elts) == 2)
            keys = (pair.elts[0] for pair in pairs)
            return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return frozenset()
