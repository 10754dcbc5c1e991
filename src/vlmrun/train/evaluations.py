"""When a training run is evaluated, which evaluation is the best, and when there is nothing to gain any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vlmrun import heartbeat, logs
from vlmrun.config import derived
from vlmrun.config.job import StageJob
from vlmrun.config.schema import TrainStage
from vlmrun.data.sampler import Schedule
from vlmrun.errors import DataError
from vlmrun.names import HELD_OUT, SKIPPED
from vlmrun.train.held_out import Evaluator
from vlmrun.train.log import Tracker
from vlmrun.train.scores import Record

log = logs.get(__name__)

_CALLED = {"loss": "held-out loss", "exact_match": "share of right answers"}


class Evaluations:
    """The evaluations of one training run, those before it was resumed included. All ranks see the same.

    Args:
        evaluator: None: there are none.
        done: steps of the checkpoint that the run resumes from.
    """

    def __init__(
        self, job: StageJob, stage: TrainStage, evaluator: Evaluator | None, schedule: Schedule, done: int
    ) -> None:
        self.record = Record(job.path, done)
        self._reached = False
        self._name, self._stage, self._evaluator, self._schedule = job.name, stage, evaluator, schedule

    @property
    def best(self) -> int | None:
        """The step of the model that is to be the result, with `keep_best`."""
        return None if self._stage.keep_best is None else self.record.best(self._stage.keep_best)

    def evaluate(self, finished: int, loss: float | None, trackers: Sequence[Tracker]) -> bool:
        """Evaluates the model after N steps if that is due, and says whether it is the best so far. A collective.

        Args:
            loss: of the last step. Where it is below `until_loss`, the model is the result, and evaluated as the last.
        """
        due = self._is_due(finished) or self._is_below(loss)
        if self._evaluator is None or self.record.has(finished) or not due:
            return False
        score, samples = self._evaluator.evaluate(finished)
        self.record.add(score, samples)
        heartbeat.beat("track")
        for tracker in trackers:
            tracker.evaluated(score)
        log.info("%s  %s", self._name, score.line)
        chooses = self._stage.keep_best is not None or self._evaluator.asked.patience is not None
        if chooses and finished > 0 and self._by not in score.numbers:
            message = "%s  step %d has no %s: it is not the best model, and does not count for eval.patience"
            log.warning(message, self._name, finished, self._called)
        return finished > 0 and self.best == finished

    def score(self) -> dict[str, Any] | None:
        """Held-out numbers of the model as it is now, which are not recorded: it is of no step. A collective."""
        if self._evaluator is None:
            return None
        score, _ = self._evaluator.evaluate(self._schedule.steps)
        log.info("%s  averaged weights: %s", self._name, score.line.partition(": ")[2])
        return asdict(score)

    def is_over(self, finished: int, loss: float | None) -> bool:
        """Whether training ends after N steps because of `eval.patience`, or of `until_loss` and its last loss."""
        if self._is_below(loss):
            self._reached = True
            return True
        asked = self._stage.eval
        if asked is None or asked.patience is None or not self.record.has(finished):
            return False
        return self.record.without_gain(self._by, asked.min_delta) >= asked.patience

    def why(self) -> str:
        """The reason of that, in a sentence."""
        if self._reached:
            return f"the loss is below {self._stage.until_loss:g} (until_loss)"
        assert self._stage.eval is not None
        return f"{self._stage.eval.patience} evaluation(s) in a row did not improve the {self._called}"

    def check_best(self) -> None:
        """Makes sure that the model that is to be the result is known, when training has ended.

        Raises:
            DataError: when there were evaluations and none gave the number of `keep_best`.
        """
        trained = any(score.step > 0 for score in self.record.scores)
        if self._stage.keep_best is not None and trained and self.best is None:
            key = f"stage.{self._name}.keep_best"
            raise DataError(
                f"no evaluation gave a {self._called} to choose the best model by",
                f"{key}={self._stage.keep_best}",
                f"look at {HELD_OUT} and {SKIPPED}; {key}=null takes the last model; the checkpoints stay",
            )

    @property
    def _called(self) -> str:
        return _CALLED.get(self._by, f"score of {self._by}")

    @property
    def _by(self) -> str:
        return self._stage.keep_best or "loss"

    def _is_below(self, loss: float | None) -> bool:
        least = self._stage.until_loss
        return least is not None and loss is not None and loss < least

    def _is_due(self, finished: int) -> bool:
        if self._stage.eval is None:
            return False
        if finished == 0:
            return self._stage.eval.at_start
        steps = self._schedule.steps
        return finished == steps or derived.is_due(self._stage.eval.steps, finished, steps, self._schedule.epoch)
