"""DeepSpeed's engine behind our interface."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun import logs
from vlmrun.checks.offload import AIO
from vlmrun.config.schema import TrainStage
from vlmrun.errors import CheckpointError, LaunchError
from vlmrun.train import dist
from vlmrun.train.engine.base import Engine
from vlmrun.train.engine.tensor_parallel import Cut, group_norm
from vlmrun.train.optim import Group, optimizer

log = logs.get(__name__)


class DeepSpeedEngine(Engine):
    """DeepSpeed's engine at the configured ZeRO stage.

    Raises:
        AssertionError: when the engine did not become what was configured; it would train, wrongly, without a word.
    """

    # A folder of its own: DeepSpeed also drops scripts beside it.
    TAG = "deepspeed"

    def __init__(self, vlm: nn.Module, groups: list[Group], stage: TrainStage, config: dict[str, Any]) -> None:
        super().__init__(vlm, groups)
        deepspeed = start_deepspeed()
        size = config.get("tensor_parallel", {}).get("autotp_size", 1)
        self._cut = Cut(vlm, size) if size > 1 else None
        if self._cut is not None:
            config = config | {"tensor_parallel": self._cut.config()}
            # Compared with all ranks at first, and at stage 3 with the data-parallel ones after: no number fits both.
            del config["train_batch_size"]
        # DeepSpeed finds the tensors its hooks need in tensors and tuples, not in an output class of ours.
        vlm.register_forward_hook(lambda _module, _inputs, output: output.loss_sum)
        with quiet():
            self.inner, *_ = deepspeed.initialize(model=vlm, optimizer=optimizer(groups, stage.optim), config=config)
        self._zero = stage.zero
        self._fp16 = bool(config["fp16"]["enabled"])
        self._masters = bool(config["bf16"]["enabled"]) or self._fp16
        self._trained = [p for p in vlm.parameters() if p.requires_grad]
        assert isinstance(self.inner, deepspeed.DeepSpeedEngine)
        assert self.inner.zero_optimization_stage() == stage.zero
        assert self.inner.gradient_clipping() == stage.optim.max_grad_norm
        assert self.inner.gradient_accumulation_steps() == config["gradient_accumulation_steps"]
        assert self.inner.train_micro_batch_size_per_gpu() == stage.micro_batch
        assert self._cut is not None or self.inner.train_batch_size() == config["train_batch_size"]
        assert self.inner.world_size == dist.world()
        self._names = {parameter: name for name, parameter in vlm.named_parameters()}
        self._tensor_group = self.inner.mpu.get_tensor_model_parallel_group() if self._cut is not None else None
        if self._cut is not None:
            self._cut.check(vlm)
        assert self.inner.bfloat16_enabled() == bool(config["bf16"]["enabled"])
        assert self.inner.fp16_enabled() == self._fp16

    @property
    def name(self) -> str:
        return f"ZeRO-{self._zero}" + (f", tensor parallel {self._cut.size}" if self._cut is not None else "")

    @property
    def described(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.inner.optimizer.param_groups
        return groups

    def forward(self, batch: dict[str, Any]) -> Tensor:
        loss_sum: Tensor = self.inner(**self._inputs(batch))
        return loss_sum

    def backward(self, loss: Tensor) -> None:
        self.inner.backward(loss)
        # Within an update this only counts the micro batch; the last one is left for `step`.
        if not self.inner.is_gradient_accumulation_boundary():
            self.inner.step()

    def step(self, factor: float, weight_decay: float | None = None) -> float | None:
        assert self.inner.is_gradient_accumulation_boundary(), "a micro batch is missing or one too many"
        self._pace(factor, weight_decay)
        norm = self._own_norm() if self._zero == 0 else None
        scale = self._allow_lowest_scale() if self._fp16 else None
        self.inner.step()
        if not self.inner.was_step_applied():
            return None if self._fp16 else float("nan")
        found = float(self.inner.get_global_grad_norm() if norm is None else norm)
        # Stage 3 divides by the scale of the next update (0.19.8, stage3.py), twice this one's after a quiet window.
        return found if scale is None or self._zero != 3 else found * float(self.inner.optimizer.cur_scale) / scale

    def _allow_lowest_scale(self) -> float:
        """The loss scale; an overflow at the lowest one is reported by the loop, not as an exception of DeepSpeed."""
        self.inner.optimizer.loss_scaler.raise_error_at_min_scale = False
        return float(self.inner.optimizer.cur_scale)

    def loss_scale(self) -> float | None:
        return float(self.inner.optimizer.cur_scale) if self._fp16 else None

    def save(self, folder: Path) -> None:
        with quiet():
            self.inner.save_checkpoint(str(folder), tag=self.TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        if not (folder / self.TAG).is_dir():
            raise CheckpointError("DeepSpeed has nothing to load here", str(folder), "remove the checkpoints folder")
        # Frozen parameters are not in the checkpoint, hence not strict; `save.check_facts` has compared what is.
        with quiet():
            path, _ = self.inner.load_checkpoint(
                str(folder), tag=self.TAG, load_module_strict=False, load_lr_scheduler_states=False
            )
        # DeepSpeed returns None where it finds nothing, and a run would begin again from zero.
        assert path is not None

    def finest(self, parameter: nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

        exact = self._masters and parameter.requires_grad
        if self._zero == 3:
            held: Any = parameter  # with what DeepSpeed adds to it
            shard: Tensor | None = safe_get_local_fp32_param(parameter) if exact else held.ds_tensor
            return None if shard is None else shard.detach()
        if exact:
            whole: Tensor = safe_get_full_fp32_param(parameter)
            return whole.detach()
        return parameter.detach()

    @property
    def replicated(self) -> bool:  # type: ignore[override]
        return self._zero == 0

    def pieces(self) -> Iterator[tuple[str, Tensor, int]]:
        from deepspeed.utils import safe_get_local_fp32_param

        if self._zero == 0:
            yield from super().pieces()
            return
        for held, name in self._named():
            if self._zero == 3:
                shard: Tensor = safe_get_local_fp32_param(held)
                yield name, shard.view(-1), dist.rank() * held.ds_tensor.numel()
            elif held._hp_mapping is not None:
                fragment = held._hp_mapping
                yield name, fragment.get_hp_fragment().view(-1), fragment.lp_fragment_address.start

    @torch.no_grad()
    def put(self, pieces: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_local_fp32_param

        if self._zero == 0:
            super().put(pieces)
            return
        for held, name in self._named():
            if self._zero == 3:
                piece = pieces[name].to(held.ds_tensor.device)
                safe_set_local_fp32_param(held, piece)
                held.ds_tensor.copy_(piece.view_as(held.ds_tensor))
            else:
                if held._hp_mapping is not None:
                    held._hp_mapping.get_hp_fragment().view(-1).copy_(pieces[name])
                held.data.copy_(safe_get_full_fp32_param(held))
        if self._zero == 3:
            # Small parameters stay gathered: what they hold is the old weights.
            small = self.inner.optimizer.persistent_parameters
            if small:
                small[0].partition(small)
                small[0].all_gather(small)

    def _named(self) -> list[tuple[Any, str]]:
        """Trained parameters, with what DeepSpeed adds to them, and their names."""
        return [(parameter, self._names[parameter]) for parameter in self._trained]

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        if self._zero != 3:
            return self._uncut(parameter)
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return self._uncut(parameter)

    def _uncut(self, parameter: nn.Parameter) -> Tensor:
        name = self._names[parameter]
        if self._cut is None or self._cut.dimension(name) is None:
            return super()._whole(parameter)
        whole = self._cut.whole(name, parameter.detach(), self._tensor_group)
        return whole.cpu() if dist.is_main() else torch.empty(0)

    def _own_norm(self) -> Tensor:
        """Stage 0 reports no norm in fp32; gradients are averaged by now and equal on all ranks."""
        found = [p for p in self._trained if p.grad is not None]
        if self._cut is None:
            return torch.nn.utils.get_total_norm([p.grad for p in found if p.grad is not None])
        pieces = [p for p in found if self._cut.dimension(self._names[p]) is not None]
        whole = [p.grad for p in found if p.grad is not None and self._cut.dimension(self._names[p]) is None]
        return group_norm(whole, [p.grad for p in pieces if p.grad is not None], self._tensor_group)


def start_deepspeed() -> Any:
    """Imports DeepSpeed and lets it join the process group; safe to call twice.

    It would compile a shared-memory collective here, which training does not use, and crash where there is no compiler.
    """
    with quiet():
        import deepspeed
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())
    return deepspeed


def require_drive() -> None:
    """Refuses, before a weight is loaded, an offload to a drive that DeepSpeed cannot do here.

    Raises:
        LaunchError: with what to install.
    """
    start_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with quiet():
        able = AsyncIOBuilder().is_compatible(verbose=False)
    if not able:
        raise LaunchError("offload to a drive needs DeepSpeed's async_io, which libaio is missing for", "offload", AIO)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps DeepSpeed's prints off stdout, which belongs to results; they go to the debug log."""
    spoken = io.StringIO()
    try:
        with contextlib.redirect_stdout(spoken):
            yield
    finally:
        for line in filter(None, spoken.getvalue().splitlines()):
            log.debug("deepspeed: %s", line)
