"""Who runs forward, backward and the update: plain PyTorch on one rank, or DeepSpeed.

Both members do the same arithmetic; the plain one is what tests compare with. The loop sees only `Engine`.
"""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun import logs
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.train import dist
from vlmrun.train.optim import Group, optimizer

log = logs.get(__name__)


class Engine(ABC):
    """A model under training.

    One update is: `forward` and `backward` for each micro batch, then `step`. All are collectives: every rank makes the
    same calls in the same order.
    """

    def __init__(self, vlm: nn.Module, groups: list[Group]) -> None:
        self.vlm = vlm
        self.groups = groups

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Sum of the losses of all supervised tokens of a collated micro batch, in fp32."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of loss / accumulation, to be averaged over ranks."""

    @abstractmethod
    def step(self, factor: float) -> float | None:
        """Updates with every group's rate times `factor`; returns the gradient norm before clipping.

        None: the gradients did not fit into fp16, and nothing was updated; the next ones are scaled less.
        """

    def loss_scale(self) -> float | None:
        """fp16: the factor that the next loss is multiplied by; None where losses are taken as they are."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes trained weights and optimizer state below a folder that exists."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""

    def gather(self, part: str, *, trainable: bool = False) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor on the CPU) of a part's parameters, all or the trainable ones, one whole tensor at a time.

        A collective: ranks other than 0 must exhaust it too, and get empty tensors. Tied weights come once.
        """
        for name, parameter in self.vlm.get_submodule(part).named_parameters():
            if parameter.requires_grad or not trainable:
                yield name, self._whole(parameter)

    def finest(self, parameter: nn.Parameter) -> Tensor | None:
        """The most exact copy of a parameter, or of the piece of it, that this rank holds."""
        return parameter.detach()

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().cpu().clone() if dist.is_main() else torch.empty(0)

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        place = next(self.vlm.parameters()).device
        names = ("input_ids", "attention_mask", "pixels", "labels")
        tensors = {name: batch[name].to(place, non_blocking=True) for name in names}
        return tensors | {"layouts": batch.get("layouts")}


class PlainEngine(Engine):
    """PyTorch alone, on one rank. With bf16 the weights stay fp32 and the forward runs under autocast."""

    FILE = "state.pt"

    def __init__(self, vlm: nn.Module, groups: list[Group], stage: TrainStage, hardware: HardwareConfig) -> None:
        super().__init__(vlm, groups)
        if dist.world() > 1:
            raise ConfigError("the plain engine runs on one rank", "stage.*.engine", "use engine: deepspeed")
        self._optimizer = optimizer(groups, stage.optim)
        self._accumulation = stage.global_batch // stage.micro_batch
        self._max_norm = stage.optim.max_grad_norm or float("inf")
        self._autocast = hardware.precision == "bf16"
        self._trained = {name: p for name, p in vlm.named_parameters() if p.requires_grad}

    def forward(self, batch: dict[str, Any]) -> Tensor:
        inputs = self._inputs(batch)
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self._autocast):
            loss_sum: Tensor = self.vlm(**inputs).loss_sum
        return loss_sum

    def backward(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()

    def step(self, factor: float) -> float:
        for described, group in zip(self._optimizer.param_groups, self.groups, strict=True):
            described["lr"] = group.lr * factor
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path) -> None:
        weights = {name: parameter.detach() for name, parameter in self._trained.items()}
        torch.save({"weights": weights, "optimizer": self._optimizer.state_dict()}, folder / self.FILE)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / self.FILE, map_location="cpu", weights_only=True)
        if state["weights"].keys() != self._trained.keys():
            raise CheckpointError(
                "the checkpoint trains other parameters", str(folder), "remove the checkpoints folder"
            )
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])


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
        assert self.inner.train_batch_size() == stage.global_batch
        assert self.inner.world_size == dist.world()
        assert self.inner.bfloat16_enabled() == bool(config["bf16"]["enabled"])
        assert self.inner.fp16_enabled() == self._fp16

    def forward(self, batch: dict[str, Any]) -> Tensor:
        loss_sum: Tensor = self.inner(**self._inputs(batch))
        return loss_sum

    def backward(self, loss: Tensor) -> None:
        self.inner.backward(loss)
        # Within an update this only counts the micro batch; the last one is left for `step`.
        if not self.inner.is_gradient_accumulation_boundary():
            self.inner.step()

    def step(self, factor: float) -> float | None:
        assert self.inner.is_gradient_accumulation_boundary(), "a micro batch is missing or one too many"
        for described, group in zip(self.inner.optimizer.param_groups, self.groups, strict=True):
            described["lr"] = group.lr * factor
        norm = self._own_norm() if self._zero == 0 else None
        self.inner.step()
        if not self.inner.was_step_applied():
            return None if self._fp16 else float("nan")
        return float(self.inner.get_global_grad_norm() if norm is None else norm)

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
            shard = safe_get_local_fp32_param(parameter) if exact else parameter.ds_tensor
            return None if shard is None else shard.detach()
        if exact:
            whole: Tensor = safe_get_full_fp32_param(parameter)
            return whole.detach()
        return parameter.detach()

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        if self._zero != 3:
            return super()._whole(parameter)
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return super()._whole(parameter)

    def _own_norm(self) -> Tensor:
        """Stage 0 reports no norm in fp32; gradients are averaged by now and equal on all ranks."""
        gradients = [p.grad for p in self._trained if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)


def create(
    vlm: nn.Module, groups: list[Group], stage: TrainStage, hardware: HardwareConfig, config: dict[str, Any] | None
) -> Engine:
    """The engine a stage asks for; `config` is the DeepSpeed dict, or None for the plain engine."""
    if config is None:
        return PlainEngine(vlm, groups, stage, hardware)
    return DeepSpeedEngine(vlm, groups, stage, config)


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
