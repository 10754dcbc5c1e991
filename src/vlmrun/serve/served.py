"""A loaded model as it is asked: conversations become prompts, prompts become embeddings."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.cache_utils import Cache

from vlmrun.config import derived
from vlmrun.config.schema.base import Aspect
from vlmrun.data import templates
from vlmrun.data.dataset import Item
from vlmrun.data.encoder import Encoder
from vlmrun.data.images.patch_strips import joined
from vlmrun.data.images.seeing import ON_WHITE, View
from vlmrun.data.images.transform import ImageLayout, ImageTransform
from vlmrun.data.prompts import Prompts
from vlmrun.data.sample import IMAGE_TAG, Turn, move_image_tags
from vlmrun.errors import DataError
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model.head import causal_lm
from vlmrun.model.parts import Loaded
from vlmrun.serve.remembered import Features
from vlmrun.serve.rows import count_layers


@dataclass(frozen=True)
class Picture:
    """An image as the tower takes it: all its tiles, how it was cut, and the digest of both."""

    tiles: np.ndarray
    layout: ImageLayout | None
    digest: bytes


@dataclass(frozen=True)
class Prompt:
    """Expanded ids, and the same with an image's digest in its positions."""

    ids: list[int]
    key: list[int | bytes]
    pictures: tuple[Picture, ...]


def question(text: str, n_images: int) -> Turn:
    """What the user says about as many new images.

    Raises:
        DataError: when a tag stands in the text, where it would be taken for an image.
    """
    if IMAGE_TAG in text:
        raise DataError(f"{IMAGE_TAG} stands in the question", "", "leave it out and give the image itself")
    return Turn("user", move_image_tags(f"{IMAGE_TAG}\n" * n_images + text) if n_images else text)


class Served:
    """A model with a name.

    Args:
        adapter: puts this model's adapter in place where several share an LLM.
        view: how it sees images that can be seen in two ways: as in its training.
    """

    def __init__(
        self,
        name: str,
        loaded: Loaded,
        aspect: Aspect,
        adapter: Callable[[], None] = lambda: None,
        *,
        view: View = ON_WHITE,
    ) -> None:
        saved = loaded.template
        self.name = name
        self.activate = adapter
        self.template = (
            templates.marked(loaded.model.template, loaded.model.image_markers)
            if saved is None
            else templates.Template.from_dict(saved)
        )
        self.vlm = loaded.vlm.eval()
        self.llm: Any = causal_lm(loaded.vlm.llm)
        self.device = next(self.vlm.parameters()).device
        self.n_layers = count_layers(self.llm, name)
        parameters = inspect.signature(self.llm.forward).parameters
        self.takes = {"position_ids", "logits_to_keep"} & set(parameters)
        self.prompts = Prompts(
            Encoder(
                template=self.template,
                tokenizer=loaded.tokenizer,
                image_transform=ImageTransform(loaded.preprocessor, loaded.model.tiles),
                aspect=aspect,
                image_tokens=loaded.vlm.image_tokens,
                max_length=loaded.model.max_length,
                view=view,
                slices=derived.slices(loaded.model),
            )
        )
        longest = getattr(self.llm.config.get_text_config(), "max_position_embeddings", None)
        self.context = int(longest or loaded.model.max_length)

    @property
    def view(self) -> View:
        """How its images are to be opened."""
        return self.prompts.encoder.view

    def picture(self, image: Image.Image) -> Picture:
        """One RGB image, made ready for the tower."""
        encoder = self.prompts.encoder
        tiles, layout = encoder.image_transform.tiles(image, encoder.aspect)
        digest = hashlib.sha256(repr((tiles.shape, layout)).encode())
        digest.update(np.ascontiguousarray(tiles).data)
        return Picture(tiles, layout, digest.digest())

    def conversation(self, turns: Sequence[Turn], pictures: Sequence[Picture]) -> Prompt:
        """The prompt that asks for the next answer.

        Raises:
            DataError: when it is too long, or the model only describes images and none is given.
        """
        if not self.template.keep_question:  # it was trained on captions: an image in, a caption out, no dialogue
            if IMAGE_TAG not in turns[-1].text:
                raise DataError("this model only describes images", "", "give an image with the question")
            turns, pictures = turns[-1:], pictures[-turns[-1].text.count(IMAGE_TAG) :]
        pixels, layouts = self._pixels(pictures)
        return self._prompt(self.prompts.item(turns, pixels, "the conversation", layouts), pictures)

    def continuation(self, text: str, pictures: Sequence[Picture]) -> Prompt:
        """A prompt that is taken as it is written; raises as `conversation`."""
        pixels, layouts = self._pixels(pictures)
        return self._prompt(self.prompts.as_written(text, pixels, "the prompt", layouts), pictures)

    def embed(self, prompt: Prompt, start: int, features: Features) -> torch.Tensor:
        """Embeddings of a prompt from position `start` on, [1, L - start, D]."""
        ids = torch.tensor([prompt.ids[start:]], device=self.device)
        mask = ids == IMAGE_TOKEN
        embeds: torch.Tensor = self.llm.get_input_embeddings()(ids.masked_fill(mask, 0))
        n_places = int(mask.sum())
        if n_places == 0:
            return embeds
        rows = torch.cat([self._features(picture, features) for picture in prompt.pictures])[-n_places:]
        return embeds.masked_scatter(mask.unsqueeze(-1).expand_as(embeds), rows.to(embeds.dtype))

    def forward(
        self, cache: Cache, *, lengths: Sequence[int], n_new: int, **inputs: torch.Tensor | int
    ) -> torch.Tensor:
        """Logits of the last position of every row, [rows, V].

        Args:
            cache: of all rows, which end together.
            lengths: tokens of each row when the new ones are there; what stands before them is not seen.
            n_new: positions that are new, in every row.
        """
        rows = torch.tensor(lengths, device=self.device).unsqueeze(1)
        places = torch.arange(-max(0, max(lengths) - n_new), n_new, device=self.device)
        inputs["attention_mask"] = (places >= n_new - rows).long()
        if "position_ids" in self.takes:
            inputs["position_ids"] = (rows - n_new + torch.arange(n_new, device=self.device)).clamp(min=0)
        if "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = 1
        logits: torch.Tensor = self.llm(**inputs, past_key_values=cache, use_cache=True).logits
        return logits[:, -1]

    def _features(self, picture: Picture, features: Features) -> torch.Tensor:
        def make() -> torch.Tensor:
            pixels = torch.from_numpy(picture.tiles).to(self.device)
            return self.vlm.features(pixels, [picture.layout])

        return features.get((self.name, picture.digest), make)

    def _pixels(self, pictures: Sequence[Picture]) -> tuple[np.ndarray, tuple[ImageLayout | None, ...]]:
        if not pictures:
            return self.prompts.encoder.blank(0)
        return joined([picture.tiles for picture in pictures]), tuple(picture.layout for picture in pictures)

    def _prompt(self, item: Item, pictures: Sequence[Picture]) -> Prompt:
        ids, _ = self.prompts.collate.expanded(item)
        spans = (self.prompts.encoder.image_tokens(picture.layout) for picture in pictures)
        digests = [picture.digest for picture, span in zip(pictures, spans, strict=True) for _ in range(span)]
        places = iter(digests)
        key: list[int | bytes] = [next(places) if token == IMAGE_TOKEN else token for token in ids]
        return Prompt(ids, key, tuple(pictures))
