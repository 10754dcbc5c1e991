"""The text of an answer while its tokens arrive: shown is what no later token can change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Read = Callable[[Sequence[int]], tuple[str, bool]]  # ids -> their text, and whether the answer has ended in it

_HALF = "\N{REPLACEMENT CHARACTER}"  # a character whose last bytes are still to come


class Growing:
    """Collects tokens and gives out text in pieces, which joined are the whole answer.

    Args:
        read: the text of all ids so far.
        stop: strings that end the answer and are left out of it.
        held: further strings that may turn out to end it inside `read`.
    """

    def __init__(self, read: Read, stop: Sequence[str] = (), held: Sequence[str] = ()) -> None:
        self._read = read
        self._stop = tuple(stop)
        self._held = (*stop, *held)
        self.ids: list[int] = []
        self.text = ""  # given out so far
        self.ended = False

    def add(self, token: int) -> str:
        """What is new and sure with one more token; `ended` tells whether a string has ended the answer."""
        self.ids.append(token)
        return self._more(final=False)

    def end(self) -> str:
        """What was held back."""
        return self._more(final=True)

    def _more(self, *, final: bool) -> str:
        text, self.ended = self._read(self.ids)
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            text, self.ended = text[: min(found)], True
        elif not final and not self.ended:
            text = text[: len(text) - _unsure(text, self._held)].rstrip(_HALF)
        # A tokenizer may take back a space it gave out at the end of the text; nothing is given out twice.
        new = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += new
        return new


def _unsure(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0
    )
