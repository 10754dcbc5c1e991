"""PyTorch alone, on one rank: what every other engine is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import CheckpointError, ConfigError
from vlmrun.train import dist
from vlmrun.train.engine.base import Engine
from vlmrun.train.optim import Group, optimizer


class PlainEngine(Engine):
    """PyTorch alone, on one rank. With bf16 the weights stay fp32 and the forward runs under autocast."""

    FILE = "state.pt"

    def __init__(self, vlm: nn.Module, groups: list[Group], stage: TrainStage, hardware: HardwareConfig) -> None:
        super().__init__(vlm, groups)
        if dist.world() > 1:
            raise ConfigError("engine plain is one process", "stage.*.engine", "stage.*.engine=deepspeed")
        self._optimizer = optimizer(groups, stage.optim)
        self._accumulation = stage.global_batch // stage.micro_batch
        self._max_norm = stage.optim.max_grad_norm or float("inf")
        self._autocast = hardware.precision == "bf16"
        self._trained = {name: p for name, p in vlm.named_parameters() if p.requires_grad}

    @property
    def name(self) -> str:
        return "plain"

    @property
    def described(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def forward(self, batch: dict[str, Any]) -> Tensor:
        inputs = self._inputs(batch)
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self._autocast):
            loss_sum: Tensor = self.vlm(**inputs).loss_sum
        return loss_sum

    def backward(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()

    def step(self, factor: float, weight_decay: float | None = None) -> float:
        self._pace(factor, weight_decay)
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
