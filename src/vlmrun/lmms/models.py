"""The two interfaces of lmms-eval, answered by the engine that `vlmrun serve` and `vlmrun chat` use.

A task that asks for likelihoods gets those of the continuation as the beginning of an answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms

from vlmrun import store
from vlmrun.data.images import seeing
from vlmrun.errors import ConfigError, DataError, VlmrunError
from vlmrun.formats.load import describe
from vlmrun.lmms import conversation
from vlmrun.lmms.conversation import Conversation
from vlmrun.serve.dialogue import REMEMBERED
from vlmrun.serve.engine import Engine
from vlmrun.serve.opening import open_model
from vlmrun.serve.question import Progress, Question
from vlmrun.serve.served import Prompt, Served


class _Model(lmms):
    """A loaded artifact.

    Args:
        artifact: a stage's name, key or folder, or a model in any format that vlmrun reads.
        output: the output root where names are looked for.
        dtype, attention, bits: as of `vlmrun serve`.
        batch_size: answers decoded together.

    Raises:
        CheckpointError: when there is no such model.
        ConfigError: for several processes, and for arguments that are not known.
    """

    def __init__(
        self,
        artifact: str,
        output: str = "outputs",
        dtype: str = "auto",
        attention: str = "sdpa",
        bits: int | None = None,
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = [name for name in others if name not in ("max_batch_size", "device")]
        if unknown:
            known = "artifact, output, dtype, attention, bits"
            raise ConfigError(f"no argument {unknown[0]!r}", "--model_args", f"arguments: {known}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            fix = "start it once, or use lmms-eval's openai model on `vlmrun serve`, which uses all GPUs"
            raise ConfigError("several processes of lmms-eval cannot share a model of vlmrun", "WORLD_SIZE", fix)
        folder = store.find(Path(output), artifact)
        loaded = open_model(folder, dtype=dtype, attention=attention, bits=None if bits is None else int(bits))
        described = describe(folder, store.came_as(folder))
        view = seeing.view_of(described.get("image_background"))
        self.model = Served(artifact, loaded, described["image_aspect"], view=view)
        self.engine = Engine(batch=int(batch_size) if str(batch_size).isdigit() else 1, remembered=REMEMBERED)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests."""
        answers = [""] * len(requests)
        for place, request in enumerate(requests):
            _, _, kwargs, *at = self._parts(request)
            where = _where(*at)
            how = conversation.wanted(kwargs, where)
            asked = self._asked(request)

            def tell(news: Progress | VlmrunError, place: int = place, where: str = where) -> None:
                if isinstance(news, VlmrunError):
                    raise DataError(news.problems[0].what, where, news.problems[0].fix)
                answers[place] += news.text

            self.engine.submit(Question(self.model, self._prompt(asked), how.sampling, how.max_tokens, tell, how.stop))
            while len(self.engine.waiting) >= self.engine.batch:
                self.engine.step()
        while self.engine.busy:
            self.engine.step()
        return [answer.strip() for answer in answers]

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding gives it."""
        found = []
        for request in requests:
            text, target, visuals, *at = request.args
            doc = self._doc(*at)
            asked = conversation.of_text(text, visuals(doc) or (), _where(*at))
            continuation = str(target(doc)) if callable(target) else str(target)
            found.append(self._likelihood(asked, continuation))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not taken: no task of images and text that vlmrun's models are compared on uses it."""
        raise DataError("vlmrun does not answer tasks of several rounds", "generate_until_multi_round", "another task")

    def _likelihood(self, asked: Conversation, continuation: str) -> tuple[float, bool]:
        model = self.model
        prompt = self._prompt(asked)
        start = model.template.answer_start
        ids = model.prompts.encoder.tokenizer(start + continuation.strip(), add_special_tokens=False)["input_ids"]
        new = torch.tensor([ids], device=model.device)
        embeds = torch.cat([model.embed(prompt, 0, self.engine.features), model.llm.get_input_embeddings()(new)], 1)
        logits = model.llm(inputs_embeds=embeds).logits[0, -len(ids) - 1 : -1].float()
        chances = logits.log_softmax(-1).gather(1, new[0].unsqueeze(1))
        return float(chances.sum()), bool((logits.argmax(-1) == new[0]).all())

    def _prompt(self, asked: Conversation) -> Prompt:
        """Images are seen as in training and by `vlmrun chat`."""
        shown = [self.model.picture(seeing.to_rgb(image, self.model.view)) for image in asked.images]
        return self.model.conversation(asked.turns, shown)

    def _doc(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _parts(self, request: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def _asked(self, request: Any) -> Conversation:
        raise NotImplementedError


class Simple(_Model):
    """lmms-eval's simple interface: a text and its images."""

    is_simple = True

    def _parts(self, request: Any) -> tuple[Any, ...]:
        text, kwargs, visuals, *at = request.args
        return text, visuals, kwargs, *at

    def _asked(self, request: Any) -> Conversation:
        text, visuals, _, *at = self._parts(request)
        return conversation.of_text(text, visuals(self._doc(*at)) or (), _where(*at))


class Chat(_Model):
    """lmms-eval's chat interface: messages."""

    is_simple = False

    def _parts(self, request: Any) -> tuple[Any, ...]:
        return tuple(request.args)  # text, messages of a document, kwargs, document, task, split

    def _asked(self, request: Any) -> Conversation:
        _, messages, _, *at = self._parts(request)
        return conversation.of_messages(messages(self._doc(*at)), _where(*at))


def _where(number: int, task: str, split: str) -> str:
    return f"{task}, {split}, document {number}"
