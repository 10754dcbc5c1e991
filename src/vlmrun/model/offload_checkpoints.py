"""Gradient checkpointing: a block keeps its input, and computes all else again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_FUNCTION = "_gradient_checkpointing_func"  # what transformers calls to run a block


def offload_kept(*modules: nn.Module) -> None:
    """Lets what the blocks of checkpointed modules keep wait in host memory.

    On a GPU that is one copy each way per block, beside its computing.
    """
    found = [module for part in modules for module in part.modules() if hasattr(module, _FUNCTION)]
    assert found, "transformers runs its blocks by another name"
    for module in found:
        setattr(module, _FUNCTION, _offloaded(getattr(module, _FUNCTION)))


def _offloaded(run: Callable[..., Any]) -> Callable[..., Any]:
    def on_cpu(*arguments: Any, **named: Any) -> Any:
        with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
            return run(*arguments, **named)

    return on_cpu
