"""Regular expressions that a configuration names: compared with names for a bounded time.

Python's own `re` may backtrack for longer than anyone waits (`(.*)*x`), and cannot be stopped; `regex` reads the same
expressions and has a limit.
"""

from __future__ import annotations

import math
import re

import regex

from vlmrun.errors import ConfigError

_SECONDS = 0.5
_LONGEST = 2000  # characters: compiling takes time as well
_COUNTED = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_MOST_COPIES = 10_000  # that `{n}` asks for, one inside another: each is compiled by itself
# As long as names of tensors are, and nearly repetitive: what backtracks at all does so here.
_PROBES = ("llm.model.layers.10.self_attn.q_proj", "tower.vision_model.encoder.layers.0.mlp.fc1.weight", "a" * 48)


def fault(pattern: str) -> str | None:
    """Why an expression cannot be used; None: it can."""
    try:
        for probe in _PROBES:
            matches(pattern, probe)
            occurs(pattern, probe)
    except ConfigError as error:
        return error.problems[0].what
    return None


def matches(pattern: str, name: str) -> bool:
    """Whether all of a name matches.

    Raises:
        ConfigError: when the pattern is no expression, or takes too long.
    """
    return _compared(pattern, name, whole=True)


def occurs(pattern: str, name: str) -> bool:
    """Whether some part of a name matches; raises as `matches`."""
    return _compared(pattern, name, whole=False)


def _compared(pattern: str, name: str, *, whole: bool) -> bool:
    fix = "a simpler expression, without a repetition inside another one"
    if len(pattern) > _LONGEST:
        raise ConfigError(f"an expression of {len(pattern)} characters; {_LONGEST} at most are read", pattern[:40], fix)
    copies = (max(int(n or 0) for n in found.groups(default="0")) for found in _COUNTED.finditer(pattern[:_LONGEST]))
    if math.prod(max(1, n) for n in copies) > _MOST_COPIES:
        raise ConfigError(f"{pattern!r} counts to more than {_MOST_COPIES}", pattern, fix)
    compare = regex.fullmatch if whole else regex.search
    try:
        return compare(pattern, name, timeout=_SECONDS) is not None
    except TimeoutError:
        raise ConfigError(f"{pattern!r} backtracks without end on {name!r}", pattern, fix) from None
    except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}", pattern, "such as '.*_proj'") from error
