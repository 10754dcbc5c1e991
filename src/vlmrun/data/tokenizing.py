"""What a tokenizer refuses, as a problem of the text and not of the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlmrun.errors import DataError


@contextmanager
def refusals() -> Iterator[None]:
    """Around a call of a tokenizer.

    Raises:
        DataError: for whatever the call raises; the caller knows which record it is.
    """
    try:
        yield
    except Exception as error:
        what = f"the tokenizer cannot take this text: {type(error).__name__}: {error}"
        raise DataError(what, fix="remove what it does not take, or set on_error: skip") from error
