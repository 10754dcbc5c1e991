"""Evaluation during training: the loss of held-out data, some answers, and benchmarks, without changing the training.

Every step seeds its random numbers, so it does not matter what is drawn in between (nothing is); modes are put back as
they were, and gradients are off. Which samples are looked at, and in which batches, does not change from one evaluation
to the next. All ranks make the same calls: who has no batch left repeats one that does not count.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from vlmrun import heartbeat
from vlmrun.config.job import StageJob
from vlmrun.config.schema import BenchmarkConfig
from vlmrun.data.dataset import Dataset, Item
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import IMAGE_TAG, same_answer
from vlmrun.errors import DataError
from vlmrun.model.loss import count
from vlmrun.train import dist
from vlmrun.train.benchmarks import Questions
from vlmrun.train.engine.base import Engine
from vlmrun.train.samples import Samples
from vlmrun.train.scores import Score


class Evaluator:
    """Held-out data, and how a model under training is tried on it.

    Args:
        dataset: of the stage's `eval.data` but for benchmarks; None: there is none.
        benchmarks: those among `eval.data`.
        autocast: whether the engine runs its forward passes under bf16 autocast.

    Raises:
        DataError: when answers are to be generated and no sample asks for one.
    """

    def __init__(
        self, engine: Engine, dataset: Dataset | None, benchmarks: Questions | None, samples: Samples, *, autocast: bool
    ) -> None:
        stage = samples.stage
        assert stage.eval is not None
        self.asked = stage.eval
        self._engine, self._collator, self._autocast = engine, samples.collator, autocast
        self._prompts = Prompts(samples.encoder)
        self._held_out = dataset
        self._chosen = [] if dataset is None else _choice(len(dataset), self.asked.max_samples, stage.seed)
        self._batches = _cut(self._chosen, stage.micro_batch)
        self._questions = _cut(self._askable(), stage.micro_batch)
        self._benchmarks = benchmarks
        self._asks = [] if benchmarks is None else benchmarks.usable(self._prompts, samples.list_skipped)

    def evaluate(self, step: int) -> tuple[Score, list[dict[str, Any]]]:
        """The score of the model as it is, and on rank 0 a row for each generated answer. A collective."""
        began = time.monotonic()
        with torch.no_grad(), _as_in_use(self._engine.vlm):
            loss, n_tokens = self._loss()
            with self._engine.readable():
                rows = self._answers()
                found = self._scores()
        matches = [same_answer(row["answer"], row["expected"]) for row in rows]
        score = Score(
            step=step,
            loss=loss,
            exact_match=sum(matches) / len(matches) if matches else None,
            supervised_tokens=n_tokens,
            samples=len(self._chosen),
            seconds=time.monotonic() - began,
            benchmarks=found,
        )
        return score, [{"step": step, **row} for row in rows]

    @property
    def _dataset(self) -> Dataset:
        assert self._held_out is not None
        return self._held_out

    def _loss(self) -> tuple[float | None, int]:
        """Mean over all supervised tokens of all ranks, and how many they are."""
        if self._held_out is None:
            return None, 0
        sums = torch.zeros(2, dtype=torch.float64)
        for batch, counts in _mine(self._batches):
            heartbeat.beat("evaluate")
            collated = self._collator([self._dataset[index] for index in batch])
            loss_sum = self._engine.forward(collated)
            if counts:
                sums += torch.tensor([float(loss_sum), count(collated["labels"])], dtype=torch.float64)
        total, n_tokens = dist.all_reduce(dist.on_device(sums)).tolist()
        return total / n_tokens if n_tokens else float("nan"), int(n_tokens)

    def _answers(self) -> list[dict[str, Any]]:
        """Rows of generated answers in the order of the samples, on every rank."""
        mine = []
        for batch, counts in _mine(self._questions):
            heartbeat.beat("evaluate")
            items = [self._item(index) for index in batch]
            texts = self._generate(items, self.asked.max_new_tokens)
            if counts:
                mine.append([self._row(index, text) for index, text in zip(batch, texts, strict=True)])
        rounds = itertools.zip_longest(*dist.gather_objects(mine)[:: dist.replicas()], fillvalue=[])
        return [row for turn in rounds for batch in turn for row in batch]

    def _scores(self) -> dict[str, float | None]:
        """The score of every benchmark, on every rank."""
        benchmarks = self._benchmarks
        if benchmarks is None:
            return {}
        mine: dict[int, str] = {}
        for batch, counts in _mine(self._asks):
            heartbeat.beat("evaluate")
            items = [benchmarks.item(place, self._prompts) for place in batch]
            texts = self._generate(items, benchmarks.asks[batch[0]].max_new_tokens)
            if counts:
                mine |= dict(zip(batch, texts, strict=True))
        texts_by_place = {place: text for part in dist.gather_objects(mine) for place, text in part.items()}
        return benchmarks.score(texts_by_place)

    def _generate(self, items: Sequence[Item], max_new_tokens: int) -> list[str]:
        batch = self._prompts.collate(items)
        place = next(self._engine.vlm.parameters()).device
        with self._engine.readable(), torch.autocast(place.type, torch.bfloat16, enabled=self._autocast):
            vlm: Any = self._engine.vlm
            new = vlm.generate(
                batch["input_ids"].to(place),
                batch["attention_mask"].to(place),
                batch["pixels"].to(place),
                max_new_tokens=max_new_tokens,
                eos_ids=self._prompts.stop_ids,
                layouts=batch["layouts"],
                together=dist.world() > 1,
            )
        return [self._prompts.answer(ids) for ids in new.tolist()]

    def _row(self, index: int, answer: str) -> dict[str, Any]:
        sample = self._dataset.sample(index)
        return {
            "id": sample.id,
            "data": self._dataset.name(index),
            "image": sample.images[0] if sample.images else None,
            "question": sample.turns[-2].text.replace(IMAGE_TAG, "").strip(),
            "expected": sample.turns[-1].text,
            "answer": answer,
        }

    def _item(self, index: int) -> Item:
        """The prompt of a sample: all but its last answer."""
        sample, item = self._dataset.sample(index), self._dataset[index]
        return self._prompts.item(sample.turns[:-1], item.pixels, sample.where, item.layouts, sample=sample)

    def _askable(self) -> list[int]:
        """The first samples that end with an answer, and whose prompt fits."""
        found: list[int] = []
        if self._held_out is None:
            return found
        for index in self._chosen:
            if len(found) == self.asked.generate:
                break
            sample = self._dataset.sample(index)
            if len(sample.turns) > 1 and sample.turns[-1].role == "assistant" and self._is_usable(index):
                found.append(index)
        if self.asked.generate and not found:
            raise DataError("no held-out sample can be asked", ", ".join(self.asked.data), "eval.generate=0")
        return found

    def _is_usable(self, index: int) -> bool:
        if self._dataset[index].skipped is not None:
            return False
        try:
            self._item(index)
        except DataError:  # the prompt alone is too long
            return False
        return True


def create(engine: Engine, job: StageJob, samples: Samples, benchmarks: Questions | None) -> Evaluator | None:
    """The evaluator of a train stage; None where it is not evaluated."""
    stage = samples.stage
    if stage.eval is None:
        return None
    plain = [name for name in stage.eval.data if not isinstance(job.data[name], BenchmarkConfig)]
    dataset = samples.held_out(plain) if plain else None
    autocast = stage.engine == "plain" and job.hardware.precision == "bf16"
    return Evaluator(engine, dataset, benchmarks, samples, autocast=autocast)


def _mine(batches: Sequence[list[int]]) -> Iterator[tuple[list[int], bool]]:
    """This rank's batches, as many on every rank, and whether each of them counts: once among ranks that share it."""
    first = dist.rank() % dist.replicas() == 0
    for start in range(0, len(batches), dist.data_world()):
        number = start + dist.data_rank()
        yield (batches[number], first) if number < len(batches) else (batches[0], False)


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _choice(n_samples: int, most: int | None, seed: int) -> list[int]:
    if most is None or most >= n_samples:
        return list(range(n_samples))
    return sorted(random.Random(seed).sample(range(n_samples), most))


@contextlib.contextmanager
def _as_in_use(vlm: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in vlm.modules()]
    vlm.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
