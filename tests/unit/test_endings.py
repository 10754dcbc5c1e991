"""Patterns of ranks are refused before `re` can be kept busy by them."""

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun import endings
from vlmrun.endings import ends_as

NAME = "model.layers.10.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    ["(.*)*x", "([a-z_.0-9]+)*X", "(a|a)*", "(a?)*x", "((ab)?)+x", ".*.*.*.*.*x", "(.?)" * 40 + "x", "a{1,}" * 5 + "x",
     "x" * 5000, "(" * 499],
)  # fmt: skip
def test_what_could_backtrack_is_refused(pattern):
    assert endings.fault(pattern)


@pytest.mark.parametrize(
    "pattern",
    [r"\p{L}+_proj", "(?i)q_proj", "(", "a)", "*", "[z-a]", r"(a)\1", "(?P<x>a)", "(?=a)", "a**", "[]]", "a\\"],
)
def test_what_re_reads_otherwise_or_not_at_all_is_refused(pattern):
    assert endings.fault(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["q_proj", "layers.10.*.q_proj", r"model\.layers\.(8|9|10)\..*\.(q|k)_proj", r"layers\.\d+\.self_attn\.[qkv]_proj",
     "(?:self_attn|mlp).(q|k|up)_proj", "layers.1[0-9].self_attn.q_proj", r"layers\.\d{1,2}\..*q_proj", ".*q_proj"],
)  # fmt: skip
def test_usual_ones_are_taken(pattern):
    assert endings.fault(pattern) is None
    assert ends_as(pattern, NAME)


_PARTS = ["a", ".", "[ab]", "(", ")", "|", "*", "+", "?", "{2}", "{1,3}", r"\d", "(?:", "*?", "^"]


@given(st.lists(st.sampled_from(_PARTS), max_size=10).map("".join))
@settings(deadline=None)
def test_what_is_taken_compiles_and_ends(pattern):
    if endings.fault(pattern) is None:
        re.compile(pattern)
        assert not ends_as(pattern, "ab" * 24 + "\n!")


def test_the_worst_that_is_taken_ends_soon():
    worst = max((".*a" * n + "X" for n in range(1, 9)), key=lambda text: (endings.fault(text) is None, len(text)))
    assert endings.fault(worst) is None
    code = f"import re; assert not re.match(r'(.*\\.)?({worst})$', {'a.' * 24!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
