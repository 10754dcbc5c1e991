"""Benchmarks that are asked during training: every rank answers its share, in step with all others.

What is asked, and what an answer is worth, is known to `eval`, which stands beside this package: the stage hands it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmrun import heartbeat, logs
from vlmrun.data.dataset import Item
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import Question, Rejected
from vlmrun.errors import DataError
from vlmrun.names import SKIPPED
from vlmrun.train import dist

log = logs.get(__name__)


@dataclass(frozen=True)
class Ask:
    """A question of a benchmark.

    Args:
        data: name of its set.
        skip: leave it out where its image cannot be used.
    """

    data: str
    question: Question
    images: ImageFolder | None
    max_new_tokens: int
    skip: bool


@dataclass(frozen=True)
class Questions:
    """All that are asked at an evaluation.

    Args:
        asks: questions of all sets.
        batches: their places, those together that are asked together; a batch is of one set.
        score: from answers by place to a number for each set; a place without an answer is not scored.
        sets: names of all sets.
        left_out: questions whose image is not there.
    """

    asks: Sequence[Ask]
    batches: Sequence[Sequence[int]]
    score: Callable[[Mapping[int, str]], dict[str, float | None]]
    sets: Sequence[str] = ()
    left_out: Sequence[Rejected] = ()

    def item(self, place: int, prompts: Prompts) -> Item:
        """The prompt of a question.

        Raises:
            DataError: when its image cannot be used, or the prompt is too long.
        """
        question = self.asks[place].question
        pixels, layouts = prompts.encoder.pixels(question, self.asks[place].images)
        return prompts.item(question.turns, pixels, question.where, layouts)

    def usable(self, prompts: Prompts, list_skipped: Callable[[list[dict[str, Any]]], None]) -> list[list[int]]:
        """The batches without what cannot be asked, the same on every rank; each rank looks at its share.

        Args:
            list_skipped: notes what is left out; called on rank 0.

        Raises:
            DataError: on every rank, for a question that cannot be asked, unless its data says `on_error: skip`; for a
                set without a question that can be.
        """
        bad, error = self._tried(prompts)
        parts = dist.gather_objects((bad, error))
        for _, found in parts:
            if found is not None:
                raise found
        bad = {place: rejected for part, _ in parts for place, rejected in part.items()}
        if dist.is_main():
            left_out = [*self.left_out, *(bad[place] for place in sorted(bad))]
            list_skipped([rejected.to_dict() for rejected in left_out])
        if bad:
            log.warning("left out %d of %d questions of benchmarks (on_error: skip)", len(bad), len(self.asks))
        kept = [[place for place in batch if place not in bad] for batch in self.batches]
        askable = {self.asks[place].data for batch in kept for place in batch}
        for name in self.sets:
            if name not in askable:
                raise DataError(f"no question of {name} can be asked", SKIPPED, "look at the reasons there")
        return [batch for batch in kept if batch]

    def _tried(self, prompts: Prompts) -> tuple[dict[int, Rejected], DataError | None]:
        """Of this rank's share, what is left out; and the first error that is to end the run."""
        bad: dict[int, Rejected] = {}
        for batch in self.batches[dist.rank() :: dist.world()]:
            heartbeat.beat("load")
            for place in batch:
                try:
                    self.item(place, prompts)
                except DataError as error:
                    asked = self.asks[place]
                    if not asked.skip:
                        return bad, error
                    problem = error.problems[0]
                    bad[place] = Rejected(asked.question.id, asked.question.source, problem.what, problem.fix)
        return bad, None
