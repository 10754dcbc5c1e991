"""lmms-eval's tasks on an artifact: `lmms-eval --model vlmrun --model_args artifact=NAME`.

lmms-eval finds `manifest` by the entry point `lmms_eval.models`; nothing of vlmrun imports this package.
Source: EvolvingLMMs-Lab/lmms-eval@v0.7.3:lmms_eval/models/registry_v2.py
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval registers: one model with both of its interfaces."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vlmrun", "vlmrun.lmms.models.Simple", "vlmrun.lmms.models.Chat")
