"""Expressions of a configuration are compared in bounded time, and as `re` would."""

import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun import expressions
from vlmrun.errors import ConfigError


@pytest.mark.parametrize(
    "pattern",
    ["(.*)*(.*)*(.*)*x", "(a+)+$x", "(a|a)*$x", "(.*a){25}x", "((a{9999}){9999}){9999}", "a{99999999}", "(" * 3000, "(",
     "a" * 5000, "*", "(?P<x", "[z-a]"],
)  # fmt: skip
def test_what_never_ends_or_cannot_be_read_is_refused_soon(pattern):
    before = time.monotonic()
    if expressions.fault(pattern) is not None:
        with contextlib.suppress(ConfigError):
            expressions.matches(pattern, "a" * 48)
    else:
        assert not expressions.matches(pattern, "a" * 48)
    assert time.monotonic() - before < 20


@given(
    st.sampled_from([r"llm\..*\.(q|k)_proj", ".*mlp.*", "^tower", r"layers\.[0-3]\.", "x{2,3}", "(?i)LLM.*"]),
    st.text("llm.towerlayers0123qkx_proj", max_size=40),
)
@settings(deadline=None)
def test_they_mean_what_they_mean_to_re(pattern, name):
    assert expressions.matches(pattern, name) == bool(re.fullmatch(pattern, name))
    assert expressions.occurs(pattern, name) == bool(re.search(pattern, name))


@pytest.mark.parametrize("pattern", [r"llm\..*\.self_attn\.(q|k|v|o)_proj", "all-linear", r"^tower\."])
def test_usual_ones_are_no_problem(pattern):
    assert expressions.fault(pattern) is None
