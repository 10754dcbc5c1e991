"""What is trained: the model of a job, loaded, tuned, and where it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlmrun.arch import config_files
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.paths import read_config
from vlmrun.config.schema import Slices, Tiles, TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.formats import load as saved
from vlmrun.model import new_tokens, offload_checkpoints, parts, quantize, recompute_units, tune
from vlmrun.model.head import Head, causal_lm
from vlmrun.model.parts import Loaded
from vlmrun.model.tiles import tiling
from vlmrun.model.tower_cache import TowerCache
from vlmrun.model.towers import fp16
from vlmrun.model.ulysses import Ulysses
from vlmrun.names import PARTS
from vlmrun.train import dist
from vlmrun.train.engine.deepspeed import require_drive, start_deepspeed
from vlmrun.weights.native import weights_folder
from vlmrun.weights.reader import DTYPES
from vlmrun.zero import config as zero
from vlmrun.zero import user_json


def deepspeed_config(job: StageJob, stage: TrainStage) -> dict[str, Any] | None:
    """The dict for `deepspeed.initialize`; None for the other engines."""
    if stage.engine != "deepspeed":
        return None
    if "nvme" in zero.offloads(stage).values():
        require_drive()
    return user_json.complete(stage, job.hardware, hidden_dim=_llm_width(job, stage), name=job.name)


def load(job: StageJob, stage: TrainStage, config: dict[str, Any] | None) -> Loaded:
    """Loads the parts, sets what is trained, and moves everything to this rank's device."""
    # DeepSpeed holds 16-bit weights with fp32 masters; the other engines fp32 weights that they compute with in bf16.
    dtype = torch.float32 if config is None else DTYPES[job.hardware.precision]
    # While this object lives, transformers loads straight into ZeRO-3 shards. It only keeps a weak reference itself.
    alive = _shard_at_load(config) if config is not None and _sharded(job, stage) else None
    attention = job.hardware.attention
    if stage.init_from is None:
        loaded = parts.assemble(
            job.model, dtype=dtype, attention=attention, seed=stage.seed, quantized=quantize.of(stage)
        )
    else:
        folder = Path(job.parents[stage.init_from])
        _check_adapter(folder, stage)
        loaded = saved.load(folder, dtype=dtype, attention=attention, quantized=quantize.of(stage), keep_adapter=True)
        # The parts are the folder's (checked to be those of this run); how text is laid out is this run's.
        ours = {"max_length": job.model.max_length, "template": job.model.template}
        loaded.model = loaded.model.model_copy(update=ours)
        _cut_as_asked(loaded, job.model.tiles)
    if stage.tune.adapters and loaded.sources["llm"] is None:
        raise CheckpointError(
            "LoRA needs an LLM that is stored in a folder, this one is random", "model.llm", "give its path"
        )
    rows = (
        new_tokens.ids_of(loaded.tokenizer, parts.added_tokens(loaded.model)) if stage.tune.llm == "new_tokens" else []
    )
    tune.apply(
        loaded.vlm,
        stage.tune,
        stage.lora,
        tower_lora=derived.tower_lora(stage),
        seed=stage.seed,
        new_rows=rows,
    )
    loaded.vlm.head = Head(loaded.vlm.llm, stage.loss_head, stage.loss_chunk)
    loaded.vlm.head.listens = stage.record_losses
    loaded.vlm.tower_no_grad = stage.compat.tower_no_grad
    if stage.compat.fp16_tower and job.hardware.precision != "bf16":
        fp16.to_half(loaded.vlm.tower)
    if stage.gradient_checkpointing:
        loaded.vlm.set_gradient_checkpointing(True)
    if (n := derived.recomputed_together(stage)) > 1:
        recompute_units.group(causal_lm(loaded.vlm.llm), n)
    if stage.offload_checkpoints:
        offload_checkpoints.offload_kept(loaded.vlm.llm, loaded.vlm.tower)
    if job.hardware.sequence_parallel > 1:
        loaded.vlm.sequence = Ulysses(causal_lm(loaded.vlm.llm), dist.replica_group())
    # FSDP moves block by block what it has cut, and ZeRO-3 has cut it already.
    if stage.engine == "plain" or (config is not None and stage.zero != 3):
        loaded.vlm.to(dist.device(job.hardware))
    if stage.tower_cache is not None:
        folder = Path(stage.tower_cache).expanduser()
        computed = [attention, job.hardware.tf32, stage.compat.fp16_tower]
        loaded.vlm.tower_cache = TowerCache(folder, loaded.vlm.tower, computed)
    del alive
    return loaded


def release(loaded: Loaded) -> None:
    """Closes what training kept open beside the model."""
    if loaded.vlm.tower_cache is not None:
        loaded.vlm.tower_cache.close()


def _cut_as_asked(loaded: Loaded, tiles: Tiles | Slices | None) -> None:
    """Slices have no weights: this run's hold, whatever the model was trained with before."""
    if isinstance(tiles, Slices) and not isinstance(loaded.model.tiles, Tiles):
        loaded.model = loaded.model.model_copy(update={"tiles": tiles})
        loaded.vlm.image_tokens = tiling(loaded.vlm.image_tokens.per_tile, tiles)


def _sharded(job: StageJob, stage: TrainStage) -> bool:
    """Whether ZeRO-3 shards while loading.

    Not what is made at random: it would be other than at the lower stages. Nor what AutoTP has yet to cut, nor under
    hpZ, whose groups DeepSpeed makes once and each part that is loaded would make again.
    """
    made = (part.arguments.get("path") is None for part in (job.model.llm, job.model.tower))
    read = stage.init_from is not None or not any(made)
    whole = job.hardware.tensor_parallel > 1 or stage.deepspeed.zero_hpz_partition_size > 1
    return stage.zero == 3 and read and not whole


def _shard_at_load(config: dict[str, Any]) -> Any:
    start_deepspeed()
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)


def _check_adapter(folder: Path, stage: TrainStage) -> None:
    """An adapter that is there is trained further, on the weights that it was trained on, or stays as it is."""
    described = saved.describe(folder)
    if not described.get("adapter"):
        return
    if stage.tune.llm in ("full", "new_tokens"):
        raise CheckpointError(
            f"this model is a LoRA stage that is not merged: it cannot be trained with tune.llm {stage.tune.llm}",
            str(folder),
            "put a stage of kind merge between them and start from that; or tune.llm: lora",
        )
    then, now = described.get("quantized"), quantize.of(stage)
    if stage.tune.adapters and then != now:
        was = f"in {then['bits']} bits" if then else "on full-precision weights"
        raise CheckpointError(
            f"this model's adapter was trained {was}",
            str(folder),
            "the same tune.llm and quant as there; or a stage of kind merge between them",
        )


def _llm_width(job: StageJob, stage: TrainStage) -> int:
    """Read before anything is loaded: DeepSpeed's buckets and thresholds follow from it.

    Raises:
        CheckpointError: when config.json does not state it.
    """
    if stage.init_from is None:
        return config_files.width_of(config_files.config_of(job.model.llm))
    weights = weights_folder(Path(job.parents[stage.init_from]))
    return config_files.width_of(read_config(str(weights / "llm")))


def whole_parts(loaded: Loaded, stage: TrainStage) -> list[str]:
    """The parts that are saved from memory: a random one is in no folder it could be linked from, trained or not."""
    changed = {"full", "new_tokens"}
    return [
        part
        for part in PARTS
        # Adapters of the tower are folded into it; those of the LLM are saved beside it.
        if getattr(stage.tune, part) in (changed | {"lora"} if part == "tower" else changed)
        or loaded.sources[part] is None
    ]
