"""Questions to a finished model: prompts in, answers out. Both evaluation and chat go through here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmrun.data.collate import Collator
from vlmrun.data.dataset import Item
from vlmrun.data.encode import Encoded, tokenize
from vlmrun.data.encoder import Encoder, Layouts
from vlmrun.data.sample import IMAGE_TAG, Sample, Turn
from vlmrun.data.system import placed
from vlmrun.data.templates import Piece, Template
from vlmrun.errors import CheckpointError, DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN


class Prompts:
    """Turns into batches for generation, generated ids into text."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.stop_ids = stop_ids(encoder.template, encoder.tokenizer)
        pad = encoder.tokenizer.pad_token_id
        height, _ = encoder.image_transform.size
        self.collate = Collator(
            self.stop_ids[0] if pad is None else pad, encoder.image_tokens, height, padding_side="left"
        )

    def item(
        self,
        turns: Sequence[Turn],
        pixels: np.ndarray,
        id: str,
        layouts: Layouts | None = None,
        *,
        sample: Sample | None = None,
    ) -> Item:
        """One prompt, ready to be put into a batch by `collate`.

        Args:
            layouts: how each image was cut into the rows of `pixels`; None: none was.
            sample: the turns' own, whose system text stands in the place of the template's.

        Raises:
            DataError: when it is longer than the model's maximum length.
        """
        template = self.encoder.template if sample is None else placed(self.encoder.template, sample)
        pieces = template.prompt_pieces(turns, images=len(pixels) > 0)
        return self._item(pieces, pixels, id, layouts)

    def as_written(self, text: str, pixels: np.ndarray, id: str, layouts: Layouts | None = None) -> Item:
        """A prompt that has its template's strings already, with an `<image>` for every image; as `item` otherwise."""
        n_images = len(pixels) if layouts is None else len(layouts)
        if text.count(IMAGE_TAG) != n_images and n_images:
            raise DataError(
                f"the prompt has {text.count(IMAGE_TAG)} {IMAGE_TAG}, and {n_images} images are given",
                id,
                f"write {IMAGE_TAG} where each image goes",
            )
        if n_images:
            text = self.encoder.template.wrap_images(text)
        return self._item([Piece(text, False)] if text else [], pixels, id, layouts)

    def _item(self, pieces: Sequence[Piece], pixels: np.ndarray, id: str, layouts: Layouts | None) -> Item:
        each: Layouts = (None,) * len(pixels) if layouts is None else layouts
        blocks, spans = self.encoder.blocks(each), self.encoder.spans(each)
        ids, _ = tokenize(pieces, self.encoder.tokenizer, images=len(pixels) > 0, blocks=blocks)
        if not ids:
            raise DataError("the prompt is empty", id, "ask something, or show an image")
        n_places = ids.count(IMAGE_TOKEN)
        assert n_places == len(spans), f"{n_places} places in the text, {len(spans)} images or tiles"
        length = len(ids) + sum(spans) - len(spans)
        if length > self.encoder.max_length:
            raise DataError(
                f"the prompt has {length} tokens, the model takes {self.encoder.max_length}",
                id,
                "ask a shorter question, or begin a new conversation",
            )
        return Item(Encoded(ids, [IGNORE] * len(ids), False, 0, tuple(spans)), pixels, id, layouts=layouts)

    def answer(self, ids: Sequence[int]) -> str:
        """The text of generated ids up to the first thing that ends an answer, without surrounding space."""
        return self.read(ids)[0]

    def read(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The answer so far, and whether something has ended it."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text: str = self.encoder.tokenizer.decode(
            list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        ended = end < len(ids)
        for stop in self.encoder.template.stop:
            text, found, _ = text.lstrip().partition(stop)
            ended = ended or bool(found)
        return text.strip(), ended

    def text(self, ids: Sequence[int]) -> tuple[str, bool]:
        """As `read` for what continues a text instead of answering: only the tokenizer's own end ends it."""
        eos = self.encoder.tokenizer.eos_token_id
        end = list(ids).index(eos) if eos in ids else len(ids)
        text: str = self.encoder.tokenizer.decode(
            list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text, end < len(ids)


def stop_ids(template: Template, tokenizer: Any) -> list[int]:
    """The tokenizer's own end, and the template's stop strings where they are one token.

    Raises:
        CheckpointError: when there is none.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    for text in template.stop:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # A SentencePiece tokenizer puts its space mark before a lone newline, hence the last id, not the only one.
        if ids and tokenizer.decode(ids[-1:]) == text and ids[-1] not in found:
            found.append(int(ids[-1]))
    if not found:
        raise CheckpointError(
            f"no token ends an answer of template {template.name!r}",
            getattr(tokenizer, "name_or_path", ""),
            "give the tokenizer an eos_token, or use a template whose stop string is one of its tokens",
        )
    return found
