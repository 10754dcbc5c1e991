"""Answers several questions at once: clients that ask join between two tokens, and leaves when answered.

transformers' own continuous batching (`generate_batch`) takes token ids only; image features are embeddings. So
prompts are run first, their keys and values join those of the answers under way, and one forward pass gives each of
these its next token. What a prompt has in common with an earlier one is not computed again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

import torch

from vlmrun.errors import DataError, LaunchError
from vlmrun.serve import beginnings, rows
from vlmrun.serve.beginnings import Beginning
from vlmrun.serve.growing import Growing
from vlmrun.serve.messages import Finish
from vlmrun.serve.question import Progress, Question
from vlmrun.serve.remembered import Features, Prefixes
from vlmrun.serve.sampling import Sampler


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
        self.failed = False

    def take(self, logits: torch.Tensor) -> bool:
        """Chooses the next token, tells what is new, and says whether the answer has ended, or failed."""
        try:
            chosen = self.sampler.choose(logits)
        except LaunchError as error:
            self.failed = True
            self.question.tell(error)
            return True
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
        return finish is not None


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

    def join(self, new: Sequence[tuple[_Row, rows.KeysAndValues]]) -> None:
        parts = [self.layers(at) for at in range(len(self.rows))]
        self.rows += [row for row, _ in new]
        self.cache = rows.joined([*parts, *(layers for _, layers in new)])

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

    def step(self) -> None:
        """Takes in questions if there is room, then gives every answer under way its next token."""
        self.admit()
        self.decode()

    @torch.inference_mode()
    def admit(self) -> None:
        """Takes in the question that waits longest, and those behind it that fit into its pass; to first tokens."""
        begun: list[Beginning] = []
        while self.waiting and self.running + len(begun) < self.batch:
            question = self.waiting[0]
            if not question.cancelled:
                prefixes = self._prefixes.setdefault(question.model.name, Prefixes(self._remembered))
                following = Beginning(question, *prefixes.find(question.prompt.key))
                if begun and not beginnings.fits(following, begun):
                    break
                begun.append(following)
            self.waiting.popleft()
            if question.cancelled:
                question.tell(Progress("", (), "cancelled"))
        if begun:
            self._begin(begun)

    @torch.inference_mode()
    def decode(self) -> None:
        """Gives every answer under way its next token."""
        for lane in self._lanes.values():
            if lane.rows:
                self._decode(lane)

    def answer(self, question: Question) -> None:
        """Answers one question and returns when done: for a terminal, which asks one at a time."""
        self.submit(question)
        while self.busy:
            self.step()

    def _begin(self, begun: list[Beginning]) -> None:
        model = begun[0].question.model
        model.activate()
        failure: DataError | LaunchError | None = None
        try:
            logits, layers = beginnings.computed(begun, self.features)
        except DataError as error:
            failure = error.with_traceback(None)
        except torch.OutOfMemoryError:
            failure = LaunchError("the device has no memory left for this question", model.name, "retry")
        if failure is not None:
            self._begin_alone(begun, failure)  # not inside `except`: its traceback holds the memory of the pass
            return
        lane = self._lanes.setdefault(model.name, _Lane(model.n_layers))
        joining = []
        for each, of_row, known in zip(begun, logits, layers, strict=True):
            row = _Row(each.question)
            each.question.first_seconds = time.monotonic() - each.question.submitted
            ended = row.take(of_row)
            if not row.failed:
                self._prefixes[model.name].keep(each.question.prompt.key, known)
            if not ended:
                joining.append((row, known))
        if joining:
            lane.join(joining)

    def _begin_alone(self, begun: list[Beginning], failure: DataError | LaunchError) -> None:
        """One may be to blame, or all of them too many."""
        if len(begun) == 1:
            begun[0].question.tell(failure)
            return
        if begun[0].question.model.device.type == "cuda":
            torch.cuda.empty_cache()
        for each in begun:
            self._begin([each])

    def _decode(self, lane: _Lane) -> None:
        model = lane.rows[0].question.model
        model.activate()
        ids = torch.tensor([[row.growing.ids[-1]] for row in lane.rows], device=model.device)
        lengths = [row.length + 1 for row in lane.rows]
        logits = model.forward(lane.cache, lengths=lengths, n_new=1, input_ids=ids)
        gone = []
        for at, row in enumerate(lane.rows):
            row.length += 1
            if row.take(logits[at]):
                gone.append(at)
        for at in gone:
            self._keep(lane, at)
        if gone:
            lane.leave(gone)

    def _keep(self, lane: _Lane, at: int) -> None:
        """Remembers prompt and answer for the next turn; the last token has no keys and values yet."""
        row = lane.rows[at]
        if not row.question.cancelled and not row.failed:
            key = [*row.question.prompt.key, *row.growing.ids[:-1]]
            self._prefixes[row.question.model.name].keep(key, lane.layers(at))
