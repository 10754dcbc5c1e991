"""Which of LLaVA's workers has which models: what its controller knows. Free of torch.

Source: haotian-liu/LLaVA@c121f043 llava/serve/controller.py
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

EXPIRES = 30.0  # seconds after its last heart beat that a worker is taken for gone
Dispatch = Literal["shortest_queue", "lottery"]


@dataclass
class Known:
    """A registered worker.

    Args:
        beats: whether it sends heart beats; one that does not never expires.
    """

    models: tuple[str, ...]
    speed: float
    queue: int
    beats: bool
    seen: float


class Registry:
    """Workers by their address.

    Args:
        now: the clock, in seconds.
        draw: a random number below 1, for the lottery.
    """

    def __init__(
        self,
        dispatch: Dispatch = "shortest_queue",
        now: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.dispatch = dispatch
        self.now = now
        self.draw = draw
        self.workers: dict[str, Known] = {}

    def register(self, address: str, models: tuple[str, ...], speed: float, queue: int, *, beats: bool) -> None:
        """Takes a worker in, or takes note of its new state."""
        self.workers[address] = Known(models, speed, queue, beats, self.now())

    def beat(self, address: str, queue: int) -> bool:
        """A heart beat; whether the worker is known."""
        known = self.workers.get(address)
        if known is None:
            return False
        known.queue, known.seen = queue, self.now()
        return True

    def expire(self) -> None:
        """Forgets workers whose heart beats have stopped."""
        late = self.now() - EXPIRES
        self.workers = {where: known for where, known in self.workers.items() if not known.beats or known.seen >= late}

    def models(self) -> list[str]:
        """Names of all models."""
        self.expire()
        return sorted({name for known in self.workers.values() for name in known.models})

    def choose(self, model: str) -> str:
        """The address of a worker that has the model, which is counted as one longer queue; empty when none has."""
        self.expire()
        able = {where: known for where, known in self.workers.items() if model in known.models}
        if self.dispatch == "lottery":
            return self._drawn(able)
        able = {where: known for where, known in able.items() if known.speed > 0}
        if not able:
            return ""
        where = min(able, key=lambda where: able[where].queue / able[where].speed)
        able[where].queue += 1
        return where

    def _drawn(self, able: Mapping[str, Known]) -> str:
        """By speed; one of speed 0 never."""
        left = self.draw() * sum(known.speed for known in able.values())
        for where, known in able.items():
            left -= known.speed
            if left < 0:
                return where
        return ""
