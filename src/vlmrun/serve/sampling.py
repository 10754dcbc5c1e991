"""From logits to the next token, for one answer: nothing here depends on what else is being answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from vlmrun.errors import LaunchError
from vlmrun.serve.messages import Sampling

_FEW = 1024  # tokens


@dataclass(frozen=True)
class Chosen:
    """A token, and under `top_logprobs` its log-probability and the likeliest tokens with theirs."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer; a seed gives the same answer whatever is answered beside it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.counts: Counter[int] = Counter()
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor) -> Chosen:
        """The next token.

        Shape:
            logits [V], any type and device; computed in fp32 on the CPU.

        Raises:
            LaunchError: when the best of the logits is not finite: any NaN, an infinity, or nothing left to choose.
        """
        raw = logits.float().cpu()
        if not raw.max().isfinite():
            raise LaunchError(
                "the model's logits are not finite: it cannot answer this",
                "generating an answer",
                "ask another question; where all fail, its weights or their precision are at fault",
            )
        scores = self._penalized(raw)
        token = int(scores.argmax()) if self.sampling.temperature == 0 else self._draw(scores)
        self.counts[token] += 1
        return self._reported(token, raw)

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        how = self.sampling
        neutral = how.repetition_penalty == 1 and how.frequency_penalty == 0 and how.presence_penalty == 0
        if neutral or not self.counts:
            return logits
        ids = torch.tensor(list(self.counts))
        times = torch.tensor(list(self.counts.values()), dtype=torch.float32)
        found = logits[ids]
        found = torch.where(found < 0, found * how.repetition_penalty, found / how.repetition_penalty)
        return logits.index_put((ids,), found - how.frequency_penalty * times - how.presence_penalty)

    def _draw(self, logits: torch.Tensor) -> int:
        scaled = (logits - logits.max()) / self.sampling.temperature  # a small temperature leaves the best finite
        if 0 < self.sampling.top_k < len(scaled):
            scaled = scaled.masked_fill(scaled < scaled.topk(self.sampling.top_k).values[-1], -torch.inf)
        probabilities = scaled.softmax(0)
        if self.sampling.top_p < 1:
            ordered, places = _likeliest(probabilities, self.sampling.top_p)
            # Kept is every token that the likelier ones leave short of `top_p`: always the first.
            kept = ordered.cumsum(0) - ordered < self.sampling.top_p
            probabilities = torch.zeros_like(probabilities).index_copy(0, places[kept], ordered[kept])
        # Where one uniform number falls in the running sum; `multinomial` draws a number for every token there is.
        sums = probabilities.double().cumsum(0)
        place = torch.rand(1, dtype=torch.float64, generator=self.generator) * sums[-1]
        return int(torch.searchsorted(sums, place, right=True))

    def _reported(self, token: int, logits: torch.Tensor) -> Chosen:
        if self.sampling.top_logprobs is None:
            return Chosen(token)
        logprobs = logits.log_softmax(0)
        values, ids = logprobs.topk(self.sampling.top_logprobs)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Chosen(token, float(logprobs[token]), top)


def _likeliest(probabilities: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens that have this share together, and maybe some more, in order: seldom all must be sorted."""
    if len(probabilities) > _FEW:
        ordered, places = probabilities.topk(_FEW)
        if ordered.sum() > share:
            return ordered, places
    return probabilities.sort(descending=True)
