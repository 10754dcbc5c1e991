"""Answers several questions at once: clients that ask join between two tokens, and leaves when answered.

transformers' own continuous batching (`generate_batch`) takes token ids only; image features are embeddings. So each
prompt is run alone, its keys and values join those of the answers under way, and one forward pass gives each of these
its next token. What a prompt has in common with an earlier one is not computed again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from vlmrun.errors import DataError, LaunchError, VlmrunError
from vlmrun.serve import rows
from vlmrun.serve.growing import Growing
from vlmrun.serve.messages import Finish, Sampling
from vlmrun.serve.remembered import Features, Prefixes
from vlmrun.serve.sampling import Chosen, Sampler
from vlmrun.serve.served import Prompt, Served


@dataclass(frozen=True)
class Progress:
    """What is new of an answer: text that is sure to stay, the tokens chosen, and at the end why it ended."""

    text: str
    tokens: tuple[Chosen, ...] = ()
    finish: Finish | None = None


@dataclass
class Question:
    """A prompt to answer.

    Args:
        tell: given every `Progress`, and the error if it cannot be answered.
        stop: strings that end the answer.
        as_written: the answer continues a text: it is not trimmed, and the template's strings do not end it.

    Attributes:
        cancelled: set from anywhere; the answer ends with the next token.
        answered: tokens of the answer so far.
        reused: tokens of the prompt that were not computed again.
        image_seconds, first_seconds: spent on the images, and from being submitted to the first token.
    """

    model: Served
    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    tell: Callable[[Progress | VlmrunError], None]
    stop: tuple[str, ...] = ()
    as_written: bool = False
    cancelled: bool = False
    answered: int = 0
    reused: int = 0
    image_seconds: float = 0.0
    first_seconds: float = 0.0
    submitted: float = field(default_factory=time.monotonic)


class _Row:
    """An answer under way."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.sampler = Sampler(question.sampling)
        prompts = question.model.prompts
        read = prompts.text if question.as_written else prompts.read
        held = () if question.as_written else question.model.template.stop
        self.growing = Growing(read, question.stop, held)
        self.length = len(question.prompt.ids)  # tokens whose keys and values are there
        eos = question.model.prompts.encoder.tokenizer.eos_token_id
        self.ends = {eos} if question.as_written else set(question.model.prompts.stop_ids)

    def take(self, logits: torch.Tensor) -> Finish | None:
        """Chooses the next token, tells what is new, and says whether and why the answer has ended."""
        chosen = self.sampler.choose(logits)
        text = self.growing.add(chosen.id)
        finish: Finish | None = None
        if self.question.cancelled:
            finish = "cancelled"
        elif chosen.id in self.ends or self.growing.ended:
            finish = "stop"
        elif len(self.growing.ids) >= self.question.max_tokens:
            finish = "length"
        if finish is not None:
            text += self.growing.end()
        self.question.tell(Progress(text, (chosen,), finish))
        return finish


class _Lane:
    """Answers of one model, decoded together."""

    def __init__(self, n_layers: int) -> None:
        self.rows: list[_Row] = []
        self.cache = rows.cache_of(n_layers)

    @property
    def width(self) -> int:
        return max(row.length for row in self.rows)

    def layers(self, at: int) -> rows.KeysAndValues:
        return rows.taken(self.cache, at, self.rows[at].length)

    def join(self, row: _Row, layers: rows.KeysAndValues) -> None:
        parts = [self.layers(at) for at in range(len(self.rows))]
        self.rows.append(row)
        self.cache = rows.joined([*parts, layers])

    def leave(self, gone: Iterable[int]) -> None:
        away = set(gone)
        parts = [self.layers(at) for at in range(len(self.rows)) if at not in away]
        self.rows = [row for at, row in enumerate(self.rows) if at not in away]
        self.cache = rows.joined(parts) if parts else rows.cache_of(len(self.cache.layers))


class Engine:
    """Answers questions about one or several models in one thread; `step` is called as long as it is busy.

    Args:
        batch: answers decoded together at most, over all models.
        remembered: bytes of keys and values, and as many of image features, kept for later questions.
    """

    def __init__(self, *, batch: int, remembered: int) -> None:
        self.batch = batch
        self.features = Features(remembered)
        self._remembered = remembered
        self._prefixes: dict[str, Prefixes] = {}
        self._lanes: dict[str, _Lane] = {}
        self.waiting: deque[Question] = deque()

    @property
    def running(self) -> int:
        """Answers under way."""
        return sum(len(lane.rows) for lane in self._lanes.values())

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting) or self.running > 0

    def submit(self, question: Question) -> None:
        """Puts a question behind those that wait; from any thread."""
        self.waiting.append(question)

    @torch.inference_mode()
    def step(self) -> None:
        """Takes in one question if there is room, then gives every answer under way its next token."""
        if self.waiting and self.running < self.batch:
            self._admit(self.waiting.popleft())
        for lane in self._lanes.values():
            if lane.rows:
                self._decode(lane)

    def answer(self, question: Question) -> None:
        """Answers one question and returns when done: for a terminal, which asks one at a time."""
        self.submit(question)
        while self.busy:
            self.step()

    def _admit(self, question: Question) -> None:
        if question.cancelled:
            question.tell(Progress("", (), "cancelled"))
            return
        try:
            self._begin(question)
        except DataError as error:
            question.tell(error)
        except torch.OutOfMemoryError:
            question.tell(LaunchError("the device has no memory left for this question", question.model.name, "retry"))

    def _begin(self, question: Question) -> None:
        model, prompt = question.model, question.prompt
        model.activate()
        lane = self._lanes.setdefault(model.name, _Lane(model.n_layers))
        prefixes = self._prefixes.setdefault(model.name, Prefixes(self._remembered))
        start, known = prefixes.find(prompt.key)
        began = time.monotonic()
        embeds = model.embed(prompt, start, self.features)
        question.reused, question.image_seconds = start, time.monotonic() - began
        cache = rows.cache_of(model.n_layers, known)
        logits = _forward(model, cache, start=[start], n_new=embeds.shape[1], inputs_embeds=embeds)
        row = _Row(question)
        layers = rows.taken(cache, 0, row.length)
        prefixes.keep(prompt.key, layers)
        question.first_seconds = time.monotonic() - question.submitted
        if row.take(logits[0]) is None:
            lane.join(row, layers)

    def _decode(self, lane: _Lane) -> None:
        model = lane.rows[0].question.model
        model.activate()
        ids = torch.tensor([[row.growing.ids[-1]] for row in lane.rows], device=model.device)
        start = [row.length for row in lane.rows]
        logits = _forward(model, lane.cache, start=start, n_new=1, input_ids=ids)
        gone = []
        for at, row in enumerate(lane.rows):
            row.length += 1
            if row.take(logits[at]) is not None:
                gone.append(at)
        for at in gone:
            self._keep(lane, at)
        if gone:
            lane.leave(gone)

    def _keep(self, lane: _Lane, at: int) -> None:
        """Remembers prompt and answer for the next turn; the last token has no keys and values yet."""
        row = lane.rows[at]
        if not row.question.cancelled:
            key = [*row.question.prompt.key, *row.growing.ids[:-1]]
            self._prefixes[row.question.model.name].keep(key, lane.layers(at))


def _forward(model: Served, cache: Any, *, start: list[int], n_new: int, **inputs: torch.Tensor | int) -> torch.Tensor:
    """Logits of the last position of every row, [rows, V].

    Args:
        start: tokens of each row that the cache has; the rows end together.
        n_new: further tokens of each row.
    """
    longest = max(start)
    places = torch.arange(-longest, n_new, device=model.device)
    lengths = torch.tensor(start, device=model.device).unsqueeze(1)
    inputs["attention_mask"] = (places >= -lengths).long()
    if "position_ids" in model.takes:
        inputs["position_ids"] = lengths + torch.arange(n_new, device=model.device)
    if "logits_to_keep" in model.takes:
        inputs["logits_to_keep"] = 1
    logits: torch.Tensor = model.llm(**inputs, past_key_values=cache, use_cache=True).logits
    return logits[:, -1]
