"""From logits to the next token, for one answer: nothing here depends on what else is being answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from vlmrun.serve.messages import Sampling


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
        """
        raw = logits.float().cpu()
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
        scaled = logits / self.sampling.temperature
        if 0 < self.sampling.top_k < len(scaled):
            scaled = scaled.masked_fill(scaled < scaled.topk(self.sampling.top_k).values[-1], -torch.inf)
        probabilities = scaled.softmax(0)
        if self.sampling.top_p < 1:
            ordered, places = probabilities.sort(descending=True)
            # Kept is every token that the likelier ones leave short of `top_p`: always the first.
            probabilities = probabilities.index_fill(0, places[ordered.cumsum(0) - ordered >= self.sampling.top_p], 0)
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    def _reported(self, token: int, logits: torch.Tensor) -> Chosen:
        if self.sampling.top_logprobs is None:
            return Chosen(token)
        logprobs = logits.log_softmax(0)
        values, ids = logprobs.topk(self.sampling.top_logprobs)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Chosen(token, float(logprobs[token]), top)
