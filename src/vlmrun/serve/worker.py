"""A process that answers: one per GPU, asked over a pipe what to ask and when a client has left."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import torch

from vlmrun.data.images.loading import image_of
from vlmrun.data.images.opening import MOST_PIXELS
from vlmrun.data.images.seeing import color
from vlmrun.errors import DataError, VlmrunError
from vlmrun.serve import messages
from vlmrun.serve.engine import Engine
from vlmrun.serve.messages import Ask, Cancel, Failed, News, Plan, Ready, Usage
from vlmrun.serve.opening import open_models
from vlmrun.serve.question import Progress, Question
from vlmrun.serve.sampling import Chosen
from vlmrun.serve.served import Served


def main(pipe: Connection, plan: Plan) -> None:
    """Loads, says that it is ready, and answers until the pipe closes. Started by `pool.Worker`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front drains and closes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if plan.gpu is not None:
        torch.cuda.set_device(plan.gpu)
    try:
        models = open_models(plan)
    except VlmrunError as error:
        pipe.send(Failed(-1, error.to_dict()))
        return
    worker = _Worker(pipe, models, Engine(batch=plan.batch, remembered=plan.remembered))
    pipe.send(Ready({name: _facts(model) for name, model in models.items()}))
    worker.run()


def _facts(model: Served) -> dict[str, Any]:
    encoder = model.prompts.encoder
    return {
        "context": model.context,
        "prompt": encoder.max_length,
        "template": model.template.name,
        "image_background": color(encoder.view),
    }


class _Worker:
    """One thread listens, one makes prompts ready, and the main one computes."""

    def __init__(self, pipe: Connection, models: dict[str, Served], engine: Engine) -> None:
        self.pipe = pipe
        self.models = models
        self.engine = engine
        self.asked: dict[int, Question | None] = {}  # None: being made ready
        self.left: set[int] = set()
        self.wake = threading.Event()
        self.news: list[News | Failed] = []
        self.sending = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            self.wake.wait()
            self.wake.clear()
            while self.engine.busy:
                self.engine.admit()
                self._flush()  # first tokens do not wait for the next ones of the others
                self.engine.decode()
                self._flush()

    def _listen(self) -> None:
        with ThreadPoolExecutor(1) as ready:  # one: Python's warning filters, which decoding sets, are no thread's own
            while True:
                try:
                    message = self.pipe.recv()
                except (EOFError, OSError):
                    os._exit(0)  # no client is left to answer
                if isinstance(message, Ask):
                    self.asked[message.id] = None
                    ready.submit(self._prepare, message).add_done_callback(_fatal)
                elif isinstance(message, Cancel):
                    self._cancel(message.id)

    def _cancel(self, id: int) -> None:
        question = self.asked.get(id)
        if question is not None:
            question.cancelled = True
        elif id in self.asked:
            self.left.add(id)

    def _prepare(self, ask: Ask) -> None:
        try:
            question = self._question(ask)
        except VlmrunError as error:
            self._tell(ask.id, error)
            self._flush()
            return
        self.asked[ask.id] = question
        question.cancelled = ask.id in self.left
        self.engine.submit(question)
        self.wake.set()

    def _question(self, ask: Ask) -> Question:
        model = self.models[ask.model]
        images = [
            # The front has looked at their size.
            image_of(data, f"image {number}", max_pixels=MOST_PIXELS, view=model.view)
            for number, data in enumerate(ask.images, start=1)
        ]
        pictures = [model.picture(image) for image in images]
        if ask.turns is None:
            prompt = model.continuation(ask.prompt, pictures)
        else:
            prompt = model.conversation(ask.turns, pictures)
        room = model.context - len(prompt.ids)
        if room < 1:
            raise DataError(
                f"the prompt has {len(prompt.ids)} tokens, the model's context {model.context}",
                "the conversation",
                "ask a shorter question, or begin a new conversation",
            )
        asked = ask.most_tokens if ask.max_tokens is None else ask.max_tokens
        question = Question(
            model, prompt, ask.sampling, min(asked, room), lambda _: None, ask.stop, as_written=ask.turns is None
        )
        question.tell = lambda news: self._tell(ask.id, news, question)
        return question

    def _tell(self, id: int, news: Progress | VlmrunError, question: Question | None = None) -> None:
        if isinstance(news, VlmrunError):
            self._send(id, Failed(id, news.to_dict()), last=True)
            return
        assert question is not None
        question.answered += len(news.tokens)
        tokens = tuple(_token(question.model, token) for token in news.tokens if token.logprob is not None)
        usage = Usage(
            len(question.prompt.ids), question.answered, question.reused, question.image_seconds, question.first_seconds
        )
        self._send(id, News(id, news.text, tokens, news.finish, usage), last=news.finish is not None)

    def _send(self, id: int, message: News | Failed, *, last: bool) -> None:
        if last:
            self.asked.pop(id, None)
            self.left.discard(id)
        with self.sending:
            self.news.append(message)

    def _flush(self) -> None:
        """Sends what is new of all answers at once."""
        with self.sending:
            news, self.news = self.news, []
            if not news:
                return
            try:
                self.pipe.send(news)
            except OSError:
                os._exit(0)


def _fatal(done: Future[None]) -> None:
    """A mistake of ours while a prompt was made ready: its client must not wait for ever, so the process ends."""
    error = done.exception()
    if error is not None:
        traceback.print_exception(error)
        os._exit(1)


def _token(model: Served, chosen: Chosen) -> messages.Token:
    decode = model.prompts.encoder.tokenizer.decode
    assert chosen.logprob is not None
    return messages.Token(decode([chosen.id]), chosen.logprob, tuple((decode([id]), p) for id, p in chosen.top))
