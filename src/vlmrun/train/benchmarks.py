"""Benchmarks that are asked during training: every rank answers its share, in step with all others.

What is asked, and what an answer is worth, is known to `eval`, which stands beside this package: the stage hands it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlmrun.data.dataset import Item
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import Question
from vlmrun.errors import DataError
from vlmrun.train import dist


@dataclass(frozen=True)
class Ask:
    """A question of a benchmark.

    Args:
        skip: leave it out where its image cannot be used.
    """

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
    """

    asks: Sequence[Ask]
    batches: Sequence[Sequence[int]]
    score: Callable[[Mapping[int, str]], dict[str, float | None]]

    def item(self, place: int, prompts: Prompts) -> Item:
        """The prompt of a question.

        Raises:
            DataError: when its image cannot be used, or the prompt is too long.
        """
        question = self.asks[place].question
        pixels, layouts = prompts.encoder.pixels(question, self.asks[place].images)
        return prompts.item(question.turns, pixels, question.where, layouts)

    def usable(self, prompts: Prompts) -> list[list[int]]:
        """The batches without what cannot be asked, the same on every rank; each rank looks at its share.

        Raises:
            DataError: for a question that cannot be asked, unless its data says `on_error: skip`.
        """
        bad: set[int] = set()
        for batch in self.batches[dist.rank() :: dist.world()]:
            for place in batch:
                try:
                    self.item(place, prompts)
                except DataError:
                    if not self.asks[place].skip:
                        raise
                    bad.add(place)
        bad = set().union(*dist.gather_objects(bad))
        kept = ([place for place in batch if place not in bad] for batch in self.batches)
        return [batch for batch in kept if batch]
