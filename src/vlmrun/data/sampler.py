"""The order of samples: a pure function of seed, epoch and step, so a run resumes from a step number alone.

Epoch orders (`data/order.py`) are laid end to end and cut into global batches. How a batch is divided among ranks and
micro batches does not change it. Free of torch.
"""

from __future__ import annotations

from typing import Any

from vlmrun.data.order import Numbers, Order, shuffled
from vlmrun.errors import ConfigError, DataError


class Schedule:
    """Which samples each step, rank and micro batch takes. Steps count from 0.

    Args:
        n_samples: of one epoch.
        order: of each epoch; None: seeded permutations.
        epochs: may be a fraction; `floor(n_samples * epochs)` samples are used. None: as many as `max_steps` needs.
        max_steps: ends earlier when reached first.

    Attributes:
        steps: number of optimizer steps.
        accumulation: micro batches per rank and step.
        dropped: samples at the end that fill no global batch (0 when `max_steps` ends the run).

    Raises:
        ConfigError: when the global batch is not a multiple of micro batch x ranks.
        DataError: when the samples do not fill one global batch.
    """

    def __init__(  # noqa: PLR0913  (these numbers belong together and every caller has them at hand)
        self,
        n_samples: int,
        *,
        global_batch: int,
        micro_batch: int,
        ranks: int,
        epochs: float | None,
        max_steps: int | None,
        seed: int,
        order: Order | None = None,
    ) -> None:
        if global_batch % (micro_batch * ranks):
            raise ConfigError(
                f"global_batch {global_batch} is not a multiple of micro_batch {micro_batch} x {ranks} ranks",
                "stage",
                f"nearest that divides: {max(1, round(global_batch / (micro_batch * ranks))) * micro_batch * ranks}",
            )
        assert epochs is not None or max_steps is not None, "checked: one of the two is given"
        n_used = (
            max_steps * global_batch if epochs is None and max_steps is not None else int(n_samples * (epochs or 0))
        )
        available = n_used // global_batch
        if available == 0:
            raise DataError(
                f"{n_samples} samples over {epochs:g} epochs do not fill one global batch of {global_batch}",
                "stage.*.global_batch",
                f"use a global batch of at most {n_used}, more epochs, or more data",
            )
        self.n_samples = n_samples
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.ranks = ranks
        self.seed = seed
        self.accumulation = global_batch // (micro_batch * ranks)
        self.steps = available if max_steps is None else min(available, max_steps)
        self.dropped = n_used - available * global_batch if self.steps == available else 0
        self._order = order or shuffled([n_samples], None, seed)
        self._orders: dict[int, Numbers] = {}

    def epoch(self, step: int) -> float:
        """Passes over the data finished when `step` steps are done."""
        return step * self.global_batch / self.n_samples

    def indices(self, step: int) -> list[Any]:
        """Sample numbers of one global batch (rows of them, under packing), the same for any ranks and micro batch."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        first = step * self.global_batch
        return [self._sample(position) for position in range(first, first + self.global_batch)]

    def micro_batches(self, step: int, rank: int) -> list[list[Any]]:
        """One rank's micro batches of a step, in order."""
        batch = self.indices(step)
        starts = [(part * self.ranks + rank) * self.micro_batch for part in range(self.accumulation)]
        return [batch[start : start + self.micro_batch] for start in starts]

    def _sample(self, position: int) -> Any:
        epoch, offset = divmod(position, self.n_samples)
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            self._orders[epoch] = self._order(epoch)
        return int(self._orders[epoch][offset])
