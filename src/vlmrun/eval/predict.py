"""Ask a model questions and keep its answers, batch by batch and rank by rank, so that an evaluation can be resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact
from vlmrun.config.schema import Generation
from vlmrun.data.dataset import Item
from vlmrun.data.prompts import Prompts
from vlmrun.data.reading import list_skipped
from vlmrun.errors import DataError
from vlmrun.eval.asked import Asked, Key, batches, greedy, key_of, line, until_stop
from vlmrun.eval.features import Pictures, Seen
from vlmrun.eval.metrics.options import LETTERS
from vlmrun.ids import IGNORE
from vlmrun.names import SKIPPED

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Ranks:
    """Who shares the questions.

    Args:
        barrier: waits for all of them.
    """

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Asker:
    """How questions are put to a model.

    Args:
        batch: questions asked together; those that are drawn or compared are asked one by one.
        max_new_tokens: of plain questions; a benchmark has its own.
        seed: of drawn answers, each of which has a seed of its own: neither batch nor rank changes it.
        ranks: of which this process is one.
    """

    vlm: Any
    prompts: Prompts
    batch: int
    max_new_tokens: int
    seed: int = 0
    ranks: Ranks = Ranks()
    _pictures: dict[str, Pictures] = field(init=False, default_factory=dict, compare=False, repr=False)

    def predict(self, questions: Sequence[Asked], answers: Path, report: Report) -> list[dict[str, Any]]:
        """Answers all questions, and returns the rows of `answers` in their order; every rank calls it.

        Batches always hold the same questions, whatever the number of ranks: padding can sway a near tie, and a resumed
        evaluation must not differ from an undisturbed one. Batches that are whole on disk are kept, others asked again.

        Args:
            answers: JSONL of `question_id`, `data`, `image`, `text`, `category`, `split`, `expected`, `answer`, and of
                benchmarks `score`, `read_as`, `doubtful`; `cut` of an answer that did not end in `max_new_tokens`.
                While it is made its rows lie in a folder beside it.
            report: called with the numbers of questions done and in all, of this rank's share.

        Raises:
            DataError: for an image that cannot be used, unless its data says `on_error: skip`; and when the shares of
                all ranks leave a question out.
        """
        parts = answers.with_name(f"{answers.name}.parts")
        known = _known(answers, parts)
        mine = batches(questions, self.batch)[self.ranks.rank :: self.ranks.world]
        total, done = sum(map(len, mine)), 0
        parts.mkdir(parents=True, exist_ok=True)
        self.ranks.barrier()  # no rank writes before all have read
        own = parts / f"rank-{self.ranks.rank}.jsonl"
        kept = [known[asked.key] for batch in mine if _is_whole(batch, known) for asked in batch]
        artifact.write_text(own, "".join(map(_text, kept)))
        with own.open("a", encoding="utf-8") as handle:
            for batch in mine:
                done += len(batch)
                if not _is_whole(batch, known):
                    handle.write("".join(map(_text, self._answer(batch))))
                    handle.flush()
                    report(done, total)
        self.ranks.barrier()
        rows = _joined(questions, parts, self.ranks.world)
        self.ranks.barrier()  # rank 0 removes the parts, which a slower rank still reads
        if self.ranks.rank == 0:
            left_out = [row for row in rows if "skipped" in row]
            if left_out:
                listed = [{"id": row["question_id"], "reason": row["skipped"]} for row in left_out]
                list_skipped(answers.parent / SKIPPED, listed)
            rows = [row for row in rows if "skipped" not in row]
            artifact.write_text(answers, "".join(map(_text, rows)))
            shutil.rmtree(parts)
        self.ranks.barrier()
        return [row for row in rows if "skipped" not in row]

    @cached_property
    def _plain(self) -> Generation:
        return greedy(self.max_new_tokens)

    def _answer(self, batch: Sequence[Asked]) -> list[dict[str, Any]]:
        pictures = self._pictures.setdefault("last", Pictures(self.vlm, self.prompts.encoder))
        items: list[tuple[Item, Seen]] = []
        usable: list[Asked] = []
        skipped: list[dict[str, Any]] = []
        for asked in batch:
            question = asked.question
            try:
                seen = pictures.of(asked)
                items.append((self.prompts.item(question.turns, seen.pixels, question.where, seen.layouts), seen))
                usable.append(asked)
            except DataError as error:
                if not asked.skip:
                    raise
                reason = error.problems[0].what
                skipped.append({"question_id": question.id, "data": asked.data, "draw": asked.draw, "skipped": reason})
        said = self._texts(usable, items) if items else []
        found = [
            line(asked, text) | ({} if ended else {"cut": True})
            for asked, (text, ended) in zip(usable, said, strict=True)
        ]
        return found + skipped

    def _texts(self, batch: Sequence[Asked], items: Sequence[tuple[Item, Seen]]) -> list[tuple[str, bool]]:
        """Answers of a batch, which all questions of are asked in one way, and whether each has ended."""
        benchmark = batch[0].benchmark
        how = self._plain if benchmark is None else benchmark.config.generation
        if how.likelihood:
            assert benchmark is not None
            letters = [asked.benchmark.row.letters for asked in batch if asked.benchmark is not None]
            return [(self._likeliest(item, named), True) for item, named in zip(items, letters, strict=True)]
        if how.temperature > 0:
            torch.manual_seed(_seed(self.seed, batch[0]))
        firsts = self._generate(items, how, how.max_new_tokens)
        texts = [until_stop(text, how.stop) for text, _ in firsts]
        if how.second is None:
            # A benchmark's answer is as long as its protocol says.
            return [(text, ended or benchmark is not None) for text, (_, ended) in zip(texts, firsts, strict=True)]
        longer = [
            (self._continued(item, text + how.second), seen) for (item, seen), text in zip(items, texts, strict=True)
        ]
        seconds = [until_stop(text, how.stop) for text, _ in self._generate(longer, how, how.second_tokens)]
        return [(f"{text}\n The answer is {second}", True) for text, second in zip(texts, seconds, strict=True)]

    def _continued(self, item: Item, text: str) -> Item:
        """A prompt whose answer has begun."""
        ids, encoded = self._ids(text), item.encoded
        longer = replace(encoded, input_ids=[*encoded.input_ids, *ids], labels=[*encoded.labels, *[IGNORE] * len(ids)])
        return replace(item, encoded=longer)

    def _ids(self, text: str) -> list[int]:
        start = self.prompts.encoder.template.answer_start
        found: list[int] = self.prompts.encoder.tokenizer(start + text, add_special_tokens=False)["input_ids"]
        return found

    def _generate(
        self, items: Sequence[tuple[Item, Seen]], how: Generation, max_new_tokens: int
    ) -> list[tuple[str, bool]]:
        tensors, features = self._tensors(items)
        new = self.vlm.generate(
            tensors["input_ids"],
            tensors["attention_mask"],
            None,
            max_new_tokens=max_new_tokens,
            eos_ids=self.prompts.stop_ids,
            features=features,
            sampling=_sampling(how),
        )
        return [self.prompts.read(ids) for ids in new.tolist()]

    def _likeliest(self, item: tuple[Item, Seen], letters: Sequence[str]) -> str:
        """The letter that the model gives the best chance as the answer's beginning."""
        tensors, features = self._tensors([item])
        named = LETTERS[: len(letters)]
        ids = [self._ids(letter)[-1] for letter in named]
        with torch.no_grad():
            embeds = self.vlm.embed(tensors["input_ids"], None, features=features)
            logits = self.vlm.llm(inputs_embeds=embeds, attention_mask=tensors["attention_mask"]).logits[0, -1]
        return named[int(logits[ids].argmax())]

    def _tensors(self, items: Sequence[tuple[Item, Seen]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Ids and mask of a batch where the model is, and the features of its images one after another."""
        batch = self.prompts.collate([item for item, _ in items])
        weight = next(self.vlm.parameters())
        tensors = {key: batch[key].to(weight.device) for key in ("input_ids", "attention_mask")}
        shown = [seen.features for _, seen in items if seen.features is not None]
        return tensors, torch.cat(shown) if shown else torch.empty(0, device=weight.device)


def _sampling(how: Generation) -> dict[str, Any]:
    if how.temperature > 0:
        drawn = {"do_sample": True, "temperature": how.temperature, "top_k": 0}
        return drawn if how.top_p is None else {**drawn, "top_p": how.top_p}
    return {"num_beams": how.num_beams}


def _seed(seed: int, asked: Asked) -> int:
    """A seed for one answer."""
    text = json.dumps([seed, *asked.key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _is_whole(batch: Sequence[Asked], known: dict[Key, dict[str, Any]]) -> bool:
    return all(asked.key in known for asked in batch)


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _known(answers: Path, parts: Path) -> dict[Key, dict[str, Any]]:
    """Rows of an earlier attempt, of whichever number of ranks."""
    files = [answers, *sorted(parts.glob("rank-*.jsonl"))]
    return {key_of(row): row for file in files for row in _read(file)}


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file; a line torn by a kill ends it."""
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(text)
            key_of(row)
        except (ValueError, KeyError, TypeError):
            return
        yield row


def _joined(questions: Sequence[Asked], parts: Path, world: int) -> list[dict[str, Any]]:
    """The rows of all ranks in the questions' order. Files are named, not listed: lists of a shared folder are late."""
    files = [parts / f"rank-{rank}.jsonl" for rank in range(world)]
    found = {key_of(row): row for file in files for row in _read(file)}
    missing = [asked for asked in questions if asked.key not in found]
    if missing:
        what = f"{len(missing)} of {len(questions)} questions have no answer, such as {missing[0].question.id}"
        raise DataError(what, str(parts), "run the same command again: it asks what is missing")
    return [found[asked.key] for asked in questions]
