"""PyTorch's FSDP2: every tensor is sharded, block by block, and whole only while its block computes.

Weights stay fp32; with bf16 they are gathered and computed in bf16, and gradients are summed in fp32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vlmrun.config import derived
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import CheckpointError
from vlmrun.model import new_tokens
from vlmrun.train import dist
from vlmrun.train.engine.base import Engine
from vlmrun.train.optim import Group, optimizer

# A tower that drops its class token returns a view; nothing writes into it.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_TINY = 1e-6  # torch's own guard in clip_grad_norm_


class FsdpEngine(Engine):
    """FSDP2 over the LLM's blocks, the tower and its blocks, and the rest as the root.

    `zero: 3` frees weights after each block; `zero: 2` keeps them from a block's forward to its backward.
    """

    FOLDER = "fsdp"

    def __init__(self, vlm: nn.Module, groups: list[Group], stage: TrainStage, hardware: HardwareConfig) -> None:
        # FSDP finds the tensors its hooks need in tensors and tuples, not in an output class of ours.
        vlm.register_forward_hook(lambda _module, _inputs, output: output.loss_sum)
        self._place = dist.device(hardware)
        rows = {name: new_tokens.rows_of(parameter) for name, parameter in vlm.named_parameters()}
        _shard(vlm, stage, hardware, self._place)
        parameters = dict(vlm.named_parameters())  # other objects than before, without their hooks
        self._masks = [_train_rows(parameter, rows[name]) for name, parameter in parameters.items() if rows[name]]
        groups = [
            dataclasses.replace(group, parameters=tuple(parameters[name] for name in group.names)) for group in groups
        ]
        super().__init__(vlm, groups)
        self._trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
        self._optimizer = optimizer(groups, stage.optim)
        self._accumulation = derived.accumulation(stage, hardware)
        self._max_norm = stage.optim.max_grad_norm

    @property
    def name(self) -> str:
        return "FSDP2"

    @property
    def described(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def forward(self, batch: dict[str, Any]) -> Tensor:
        loss_sum: Tensor = self.vlm(**self._inputs(batch))
        return loss_sum

    def backward(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()

    def step(self, factor: float, weight_decay: float | None = None) -> float:
        self._pace(factor, weight_decay)
        for mask in self._masks:  # once more: under offload some versions of torch copy gradients behind the hooks
            mask()
        gradients = [_local(p.grad) for p in self._trained.values() if p.grad is not None]
        norm = _norm(gradients)
        if self._max_norm and norm > self._max_norm:
            torch._foreach_mul_(gradients, self._max_norm / (norm + _TINY))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path) -> None:
        # In safetensors: DCP's own format keeps its index as a pickle.
        writer = dcp.HuggingFaceStorageWriter(str(folder / self.FOLDER), save_distributed=True)
        dcp.save(self._state(), storage_writer=writer)

    def load(self, folder: Path) -> None:
        place = folder / self.FOLDER
        if not place.is_dir():
            raise CheckpointError("FSDP has nothing to load here", str(folder), "remove the checkpoints folder")
        dcp.load(self._state(), storage_reader=dcp.HuggingFaceStorageReader(str(place)))

    def finest(self, parameter: nn.Parameter) -> Tensor | None:
        return _local(parameter)

    def pieces(self) -> Iterator[tuple[str, Tensor, int]]:
        for name, parameter in self._trained.items():
            piece = _local(parameter)
            if piece.numel():
                yield name, piece.view(-1), _first_row(parameter) * (parameter.numel() // parameter.shape[0])

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        # The root's tensors are whole only within its forward; blocks and tower gather their own.
        root: Any = self.vlm
        root.unshard()
        try:
            yield
        finally:
            root.reshard()

    def watch(self, parameter: nn.Parameter, look: Callable[[Tensor], None]) -> Any:
        # What autograd sees is the gathered copy; the piece gets its gradient from FSDP, which calls this kind of hook.
        def look_at_piece(piece: Tensor) -> None:
            if piece.grad is not None:
                look(_local(piece.grad))

        return parameter.register_post_accumulate_grad_hook(look_at_piece)

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        whole = parameter.detach().to(self._place).full_tensor()  # type: ignore[attr-defined]
        return whole.cpu() if dist.is_main() else torch.empty(0)

    def _state(self) -> dict[str, Any]:
        """Weights and moments as they are, to be written or read in place; moments begin at zero."""
        state: dict[str, Any] = {}
        for name, parameter in self._trained.items():
            kept = self._optimizer.state[parameter]
            if not kept:
                kept["step"] = torch.zeros((), dtype=torch.float32)
                kept |= {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
            state[f"weight.{name}"] = parameter.detach()
            state |= {f"{moment}.{name}": kept[moment] for moment in _MOMENTS}
            state[f"step.{name}"] = kept["step"].reshape(1)
        return state


def _shard(vlm: nn.Module, stage: TrainStage, hardware: HardwareConfig, place: torch.device) -> None:
    bf16 = hardware.precision == "bf16"
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    )
    offload = CPUOffloadPolicy(pin_memory=place.type != "cpu") if stage.offload == "cpu" else OffloadPolicy()
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(place.type, (dist.world(),)),
        "mp_policy": policy,
        "offload_policy": offload,
        "reshard_after_forward": stage.zero == 3,
    }
    for part in (vlm.tower, vlm.llm):
        for block in _blocks(part):  # type: ignore[arg-type]
            fully_shard(block, **settings)
    # The root holds embedding, head and connector: the model reads them outside their own forward.
    fully_shard(vlm.tower, **settings)  # type: ignore[arg-type]
    fully_shard(vlm, **settings)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer: the members of its outermost lists of like modules."""
    for child in module.children():
        members = list(child.children())
        alike = len({type(member) for member in members}) == 1
        if isinstance(child, nn.ModuleList | nn.Sequential) and alike:
            yield from (member for member in members if any(True for _ in member.parameters()))
        else:
            yield from _blocks(child)


def _train_rows(parameter: nn.Parameter, rows: tuple[int, ...]) -> Callable[[], None]:
    """Makes these rows learn and no other, as `new_tokens.train_rows` does for a tensor that is not sharded.

    Gives what does so to the gradient that is there.

    Hooks run in the order in which they are registered: those of `watch` see what the optimizer will.
    """
    first, n = _first_row(parameter), _local(parameter).shape[0]
    kept = torch.zeros(n, 1, dtype=torch.bool)
    kept[[row - first for row in rows if first <= row < first + n]] = True

    def only_new(shard: Tensor) -> None:
        if shard.grad is not None:
            gradient = _local(shard.grad)  # [n, D]
            gradient.masked_fill_(~kept.to(gradient.device), 0.0)

    parameter.register_post_accumulate_grad_hook(only_new)
    return lambda: only_new(parameter)


def _first_row(parameter: nn.Parameter) -> int:
    """The row of the whole that this rank's shard begins with: torch cuts equal ones, fewer on the last ranks."""
    return min(dist.rank() * -(-parameter.shape[0] // dist.world()), parameter.shape[0])


def _local(tensor: Any) -> Tensor:
    """This rank's piece."""
    piece: Tensor = tensor.detach().to_local()
    return piece


def _norm(gradients: list[Tensor]) -> float:
    """The norm over all ranks' pieces."""
    squares = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum()
    return float(dist.all_reduce(dist.on_device(squares)).sqrt())
