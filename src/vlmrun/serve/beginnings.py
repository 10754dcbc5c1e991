"""Prompts on their way to their first tokens: several in one pass where that costs little more than one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlmrun.serve import rows
from vlmrun.serve.question import Question
from vlmrun.serve.remembered import Features, common

_TOKENS = 512  # of prompts in one pass: more make those wait whose answers are under way, and gain nothing
_PADDED = 1.25  # times what each would compute alone


@dataclass(frozen=True)
class Beginning:
    """A question, and what is known of its prompt: the first `reused` tokens with their keys and values."""

    question: Question
    reused: int
    known: rows.KeysAndValues | None

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.question.prompt.ids)

    @property
    def n_new(self) -> int:
        """Tokens that have to be computed."""
        return self.length - self.reused


def fits(following: Beginning, begun: Sequence[Beginning]) -> bool:
    """Whether a question is better computed in one pass with these than after them, when it could reuse theirs."""
    model, key = following.question.model, following.question.prompt.key
    if any(each.question.model is not model for each in begun) or "position_ids" not in model.takes:
        return False
    shared = max(common(each.question.prompt.key, key) for each in begun)
    alone = following.length - max(following.reused, shared)
    longest = max(each.n_new for each in (*begun, following))
    together = (len(begun) + 1) * longest
    return together <= min(_TOKENS, _PADDED * (sum(each.n_new for each in begun) + alone))


def computed(begun: Sequence[Beginning], features: Features) -> tuple[torch.Tensor, list[rows.KeysAndValues]]:
    """Logits after each prompt, [rows, V], and all keys and values of each, as views.

    Prompts end together. Of a row that has fewer new tokens than the longest, known ones are computed again, so that
    none has a hole, which a sliding window would count.
    """
    model = begun[0].question.model
    n_new = max(each.n_new for each in begun)
    starts = [max(0, each.length - n_new) for each in begun]
    embeds = []
    for each, start in zip(begun, starts, strict=True):
        began = time.monotonic()
        embeds.append(model.embed(each.question.prompt, start, features))
        each.question.reused, each.question.image_seconds = start, time.monotonic() - began
    cache = rows.cache_of(model.n_layers, _before(begun, starts))
    lengths = [each.length for each in begun]
    logits = model.forward(cache, lengths=lengths, n_new=n_new, inputs_embeds=_padded(embeds, n_new))
    return logits, [rows.taken(cache, at, each.length) for at, each in enumerate(begun)]


def _before(begun: Sequence[Beginning], starts: Sequence[int]) -> rows.KeysAndValues | None:
    """Keys and values of the first `starts` tokens of every row; None: of none of them any."""
    some = next((each.known for each in begun if each.known is not None), None)
    if some is None or max(starts) == 0:
        return None
    parts = [
        [(keys[:, :, :start], values[:, :, :start]) for keys, values in each.known or some]
        for each, start in zip(begun, starts, strict=True)
    ]
    return parts[0] if len(parts) == 1 else rows.stacked(parts)


def _padded(embeds: Sequence[torch.Tensor], n_new: int) -> torch.Tensor:
    """Embeddings [1, n, D] of every row, in one tensor [rows, n_new, D] with zeros before the shorter ones."""
    if len(embeds) == 1:
        return embeds[0]
    whole = embeds[0].new_zeros((len(embeds), n_new, embeds[0].shape[-1]))
    for row, given in zip(whole, embeds, strict=True):
        row[n_new - given.shape[1] :] = given[0]
    return whole
