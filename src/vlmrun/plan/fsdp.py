"""What a rank holds under FSDP2: fp32 pieces of everything, and whole weights only of what computes.

Source: torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py; the modules are those of
train/engine/fsdp.py: each block, the tower, and as the root embedding, head, last norm and connector.
"""

from __future__ import annotations

from vlmrun.arch.sizes import Shapes
from vlmrun.config.schema import TrainStage
from vlmrun.plan.counts import counts
from vlmrun.plan.states import FP32, Buffers, Setting, States, share


def states(shapes: Shapes, stage: TrainStage, one: Setting) -> States:
    """The states of a rank.

    Of whole weights there are the root's and a block's, on a GPU the next one's too. Gradients are whole in the type
    that is computed in, until they are copied flat in fp32 and sent: a block's when it is done, the root's at the end.
    """
    parts = counts(shapes, stage)
    total, trained = (sum(getattr(part, kind) for part in parts.values()) for kind in ("total", "trained"))
    llm = shapes.llm
    blocks = parts["llm"].total - (llm.n_parameters - llm.layers * llm.n_block)
    block, root = blocks // llm.layers, parts["llm"].total - blocks + parts["connector"].total
    learns = stage.tune.llm == "full" and stage.tune.llm_last is None
    of_block = block if stage.tune.llm == "full" else parts["llm"].trained // llm.layers
    of_root = (root - parts["connector"].total) * learns + parts["connector"].trained
    head = llm.n_embedding * learns
    weights, gradients, moments = (share(n * FP32, one.ranks) for n in (total, trained, 2 * trained))
    average = share(FP32 * trained, one.ranks) if stage.ema is not None else 0
    few = (root + block * (1 if one.on_cpu else 2)) * one.size
    away = one.optimizer_at == "cpu"
    return States(
        weights=0 if away else weights,
        masters=0,
        optimizer=0 if away else moments + average,
        gradients=0,
        growing=0 if away else gradients,
        kept=gradients if one.accumulates and not away else 0,
        left=0 if away else gradients,
        buffers=Buffers(
            first=(head + of_block) * one.size,
            last=(head + of_block) * one.size,
            after=(root + of_root) * one.size + of_root * FP32,
        ),
        gathered=total * one.size if one.zero == 2 else few,
        gathered_last=few,
        updating=0,
        host=weights + gradients + moments + average if away else 0,
        drive=0,
    )
