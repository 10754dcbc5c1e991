"""Images that are asked about many times: read, fitted and run through the tower once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vlmrun.data.encoder import Encoder, Layouts
from vlmrun.eval.asked import Asked

_MOST = 64  # images: at 576 rows of 4096 numbers in 16 bits 5 MB each


@dataclass
class Seen:
    """A question's images, ready to be put into a prompt."""

    pixels: np.ndarray
    layouts: Layouts
    features: torch.Tensor | None  # None: no image


@dataclass
class Pictures:
    """The images seen last, by their files.

    Each is run through the tower alone: its features are then the same in whichever batch it is asked about.
    """

    vlm: Any
    encoder: Encoder
    _seen: OrderedDict[Any, Seen] = field(default_factory=OrderedDict)

    def of(self, asked: Asked) -> Seen:
        """What a question shows.

        Raises:
            DataError: for an image that cannot be used.
        """
        key = (asked.images, asked.question.images)
        if key not in self._seen:
            self._seen[key] = self._read(asked)
            if len(self._seen) > _MOST:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]

    def _read(self, asked: Asked) -> Seen:
        pixels, layouts = self.encoder.pixels(asked.question, asked.images)
        if not asked.question.images:
            return Seen(pixels, layouts, None)
        place = next(self.vlm.parameters()).device
        with torch.no_grad():
            rows = self.vlm.features(torch.from_numpy(pixels).to(place), list(layouts))
        return Seen(pixels, layouts, rows)
