"""The tokenizer as the original codes call it, for `compat`. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmrun.data import tokenizing
from vlmrun.data.sample import IMAGE_TAG
from vlmrun.ids import IMAGE_TOKEN


@dataclass(frozen=True)
class UpstreamText:
    """The tokenizer as upstream calls it for one sample."""

    tokenizer: Any
    multimodal: bool
    max_length: int
    old: bool = False  # as transformers 4.31 tokenises, which KoLLaVA pins

    def plain(self, text: str) -> list[int]:
        """All of it, with the tokenizer's own special tokens."""
        if self.old and is_legacy(self.tokenizer) is False:
            return _ids_of_transformers_4_31(self.tokenizer, text)
        with tokenizing.refusals():
            ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def measured(self, text: str) -> list[int]:
        """As the pieces of a sample are measured: cut at images where the sample has some, never truncated."""
        return self._cut_at_images(text) if self.multimodal else self.plain(text)

    def whole(self, text: str) -> list[int]:
        """As the sample itself is tokenized: truncated here only when it has no image."""
        return self._cut_at_images(text) if self.multimodal else self.truncated(text)

    def truncated(self, text: str) -> list[int]:
        """With the tokenizer's limit applied."""
        return self.plain(text)[: self.max_length]

    def visible(self, ids: Sequence[int]) -> int:
        """How many ids differ from the padding token."""
        return sum(token != self.tokenizer.pad_token_id for token in ids)

    def _cut_at_images(self, text: str) -> list[int]:
        chunks = [self.plain(chunk) for chunk in text.split(IMAGE_TAG)]
        has_bos = bool(chunks[0]) and chunks[0][0] == self.tokenizer.bos_token_id
        ids = chunks[0][:1] if has_bos else []
        for number, chunk in enumerate(chunks):
            ids += [IMAGE_TOKEN] * (number > 0) + chunk[has_bos:]  # the first of every chunk, bos or not
        return ids


def is_legacy(tokenizer: Any) -> bool | None:
    """The `legacy` switch of a SentencePiece tokenizer; others have none."""
    found = getattr(tokenizer, "init_kwargs", {}).get("legacy")
    return None if found is None else bool(found)


def _ids_of_transformers_4_31(tokenizer: Any, text: str) -> list[int]:
    """With `legacy: false`, 4.31 tokenises what follows a special token with a space in front, then strips its mark.

    Source: huggingface/transformers@v4.31.0 behavior of the slow LLaMA tokenizer, as the recordings show it.
    """
    ids: list[int] = list(tokenizer("")["input_ids"])
    special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
    stretches = re.split(f"({'|'.join(map(re.escape, special))})", text.replace("▁", " "))
    vocabulary = tokenizer.get_vocab()
    for number, stretch in enumerate(stretches):
        if number % 2:
            ids.append(vocabulary[stretch])
            continue
        found = tokenizer(stretch, add_special_tokens=False, verbose=False)["input_ids"] if stretch else []
        if number and found and not stretch.startswith(" "):
            first = tokenizer.convert_ids_to_tokens(found[0])
            if first.startswith("▁"):
                bare = first.removeprefix("▁")
                found = [*([vocabulary.get(bare, tokenizer.unk_token_id)] if bare else []), *found[1:]]
        ids += found
    return ids
