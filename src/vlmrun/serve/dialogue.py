"""A conversation with a finished model about images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from vlmrun.config.schema import Aspect
from vlmrun.data.images.seeing import ON_WHITE, View
from vlmrun.data.sample import Turn
from vlmrun.errors import VlmrunError
from vlmrun.model.parts import Loaded
from vlmrun.serve.engine import Engine
from vlmrun.serve.messages import Sampling
from vlmrun.serve.question import Progress, Question
from vlmrun.serve.served import Picture, Served, question

Show = Callable[[str], None]

REMEMBERED = 2**28  # bytes of keys and values of the conversation so far, and as many of image features


class Dialogue:
    """Turns so far, and the model that answers the next.

    Args:
        sampling: how every answer's tokens are chosen; greedily by default.
        view: how images are seen; who opens them for `ask` asks `model.view`.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        aspect: Aspect,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        view: View = ON_WHITE,
    ) -> None:
        self.model = Served("chat", loaded, aspect, view=view)
        self.engine = Engine(batch=1, remembered=REMEMBERED)
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling or Sampling()
        self.reset()

    def reset(self) -> None:
        """Forgets all turns and images."""
        self.turns: list[Turn] = []
        self.pictures: list[Picture] = []

    def ask(self, text: str, images: Sequence[Image.Image] = (), show: Show | None = None) -> str:
        """Answers, and remembers question and answer.

        Args:
            images: images this question brings along; earlier ones stay in view.
            show: is given the answer's text in pieces as it grows.

        Raises:
            DataError: when the conversation has become too long, or the template needs an image; nothing is
                remembered then.
        """
        turns = [*self.turns, question(text, len(images))]
        pictures = [*self.pictures, *(self.model.picture(image) for image in images)]
        if not self.model.template.keep_question:
            turns, pictures = turns[-1:], pictures[len(self.pictures) :]
        answer = self._answer(turns, pictures, show)
        self.turns = [*turns, Turn("assistant", answer)]
        self.pictures = pictures
        return answer

    def recall(self, text: str, images: Sequence[Image.Image], answer: str) -> None:
        """Remembers a question and its answer of another day."""
        self.turns += [question(text, len(images)), Turn("assistant", answer)]
        self.pictures += [self.model.picture(image) for image in images]

    def _answer(self, turns: list[Turn], pictures: list[Picture], show: Show | None) -> str:
        parts: list[str] = []

        def tell(news: Progress | VlmrunError) -> None:
            if isinstance(news, VlmrunError):
                raise news
            parts.append(news.text)
            if show is not None and news.text:
                show(news.text)

        prompt = self.model.conversation(turns, pictures)
        self.engine.answer(Question(self.model, prompt, self.sampling, self.max_new_tokens, tell))
        return "".join(parts)
