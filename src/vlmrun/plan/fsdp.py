"""What a rank holds under FSDP2: fp32 pieces of everything, and whole weights only of what computes.

Source: torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py; the modules are those of
train/engine/fsdp.py: each block, the tower, and as the root embedding, head, last norm and connector.
"""

from __future__ import annotations

from vlmrun.config.schema import TrainStage
from vlmrun.plan.shapes import Shapes, counts
from vlmrun.plan.states import FP32, Buffers, Setting, States, share


def states(shapes: Shapes, stage: TrainStage, one: Setting) -> States:
    """The states of a rank.

    Weights are gathered flat and then copied out, the next block's while one computes. Gradients are whole in the type
    that is computed in, are copied flat in fp32 and sent; the root's wait for the end of the backward pass.
    """
    parts = counts(shapes, stage.tune, stage.lora)
    total, trained = (sum(getattr(part, kind) for part in parts.values()) for kind in ("total", "trained"))
    llm = shapes.llm
    blocks = parts["llm"].total - (llm.n_parameters - llm.layers * llm.n_block)
    block, root = blocks // llm.layers, parts["llm"].total - blocks + parts["connector"].total
    learns = stage.tune.llm == "full"
    of_block = block if learns else parts["llm"].trained // llm.layers
    of_root = (root - parts["connector"].total) * learns + parts["connector"].trained
    head = llm.n_embedding * learns
    weights, gradients, moments = (share(n * FP32, one.ranks) for n in (total, trained, 2 * trained))
    largest = share(max(part.trained for part in parts.values()), one.ranks)
    away = one.optimizer_at == "cpu"
    return States(
        weights=0 if away else weights,
        masters=0,
        optimizer=0 if away else moments,
        gradients=0,
        growing=0 if away else gradients,
        kept=gradients if one.accumulates and not away else 0,
        buffers=Buffers(
            first=head * one.size + of_block * (one.size + FP32),
            last=of_root * (one.size + FP32),
        ),
        gathered=(total if one.zero == 2 else root + 3 * block) * one.size,
        updating=0 if one.on_cpu or away else FP32 * largest,
        host=weights + gradients + moments if away else 0,
        drive=0,
    )
