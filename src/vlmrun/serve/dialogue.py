"""A conversation with a finished model about pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmrun.config import derived
from vlmrun.config.schema import Aspect
from vlmrun.data import templates
from vlmrun.data.dataset import Encoder
from vlmrun.data.images.open import ImageLayout, ImageTransform
from vlmrun.data.images.patch_strips import joined
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import IMAGE_TAG, Turn, move_image_tags
from vlmrun.errors import DataError
from vlmrun.model.parts import Loaded

Show = Callable[[str], None]
Picture = tuple[np.ndarray, ImageLayout | None]  # all tiles, and how it was cut


class Dialogue:
    """Turns so far, and the model that answers the next."""

    def __init__(self, loaded: Loaded, *, aspect: Aspect, max_new_tokens: int) -> None:
        saved = loaded.template
        self.template = (
            templates.marked(loaded.model.template, loaded.model.image_markers)
            if saved is None
            else templates.Template.from_dict(saved)
        )
        self.vlm = loaded.vlm.eval()
        self.max_new_tokens = max_new_tokens
        self.prompts = Prompts(
            Encoder(
                template=self.template,
                tokenizer=loaded.tokenizer,
                image_transform=ImageTransform(loaded.preprocessor, loaded.model.tiles),
                aspect=aspect,
                image_tokens=loaded.vlm.image_tokens,
                max_length=loaded.model.max_length,
                slices=derived.slices(loaded.model),
            )
        )
        self.reset()

    def reset(self) -> None:
        """Forgets all turns and pictures."""
        self.turns: list[Turn] = []
        self.pictures: list[Picture] = []

    def ask(self, text: str, image: Image.Image | None = None, show: Show | None = None) -> str:
        """Answers, and remembers question and answer.

        Args:
            image: a picture this question brings along; earlier ones stay in view.
            show: is given the answer's text in pieces as it grows.

        Raises:
            DataError: when the conversation has become too long, or the template needs a picture; nothing is
                remembered then.
        """
        if IMAGE_TAG in text:
            raise DataError(f"{IMAGE_TAG} stands in the question", "", "leave it out and give the picture itself")
        question = Turn("user", text if image is None else move_image_tags(f"{IMAGE_TAG}\n{text}"))
        turns, pictures = [*self.turns, question], self._with(image)
        if not self.template.keep_question:  # it was trained on captions: a picture in, a caption out, no dialogue
            if image is None:
                raise DataError("this model only describes pictures", "", "give a picture with the question")
            turns, pictures = [question], pictures[-1:]
        answer = self._generate(turns, pictures, show)
        self.turns = [*turns, Turn("assistant", answer)]
        self.pictures = pictures
        return answer

    def _with(self, image: Image.Image | None) -> list[Picture]:
        if image is None:
            return self.pictures
        encoder = self.prompts.encoder
        return [*self.pictures, encoder.image_transform.tiles(image, encoder.aspect)]

    def _generate(self, turns: list[Turn], pictures: list[Picture], show: Show | None) -> str:
        none, _ = self.prompts.encoder.blank(0)
        pixels = joined([tiles for tiles, _ in pictures]) if pictures else none
        layouts = tuple(layout for _, layout in pictures)
        batch = self.prompts.collate([self.prompts.item(turns, pixels, "the conversation", layouts)])
        device = next(self.vlm.parameters()).device
        new = self.vlm.generate(
            batch["input_ids"].to(device),
            batch["attention_mask"].to(device),
            batch["pixels"].to(device),
            max_new_tokens=self.max_new_tokens,
            eos_ids=self.prompts.stop_ids,
            layouts=batch["layouts"],
            streamer=None if show is None else _Stream(self.prompts, show),
        )
        return self.prompts.answer(new[0].tolist())


class _Stream:
    """What transformers' generate calls a streamer: shows text as soon as it is sure to stay."""

    def __init__(self, prompts: Prompts, show: Show) -> None:
        self.prompts = prompts
        self.show = show
        self.ids: list[int] = []
        self.shown = ""

    def put(self, value: torch.Tensor | Any) -> None:
        """Takes new token ids; the first call brings the prompt's, of which there are none beside embeddings."""
        self.ids += value.flatten().tolist()
        text = self.prompts.answer(self.ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character whose last bytes are still to come
            self._show_up_to(text)

    def end(self) -> None:
        """Shows what was held back."""
        self._show_up_to(self.prompts.answer(self.ids))

    def _show_up_to(self, text: str) -> None:
        if text.startswith(self.shown) and text != self.shown:
            self.show(text[len(self.shown) :])
            self.shown = text
