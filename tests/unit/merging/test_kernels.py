"""Both ways to pass over a slice give the same bits, and numba is loaded only where it is used."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.merging.methods import compiled, kernels, plain
from vlmrun.merging.methods.numbers import BY_COUNT, BY_NOBODY, BY_SUM, HIGH_BITS, LOW_BITS, reach

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
SIZES = st.sampled_from([1, 7, 2047, 2048, 2049, 70_000])  # around the blocks of both


@pytest.fixture(scope="module", autouse=True)
def machine_code():
    if find_spec("numba"):
        compiled.compile_loops()


def numbers(size, seed, dtype, ties=False):
    """Normal numbers, in eighths where many are to be equal, with zeros of both signs and what is no number."""
    random = np.random.default_rng(seed)
    found = random.normal(size=size).astype(np.float32)
    if ties:
        found = np.round(found * 8) / np.float32(8)
    found[random.random(size) < 0.01] = random.choice(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42], np.float32))
    return (found.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else found


def same(first, second):
    """Equal bits, but for those that tell one NaN from another."""
    nan = np.isnan(first)
    return np.array_equal(nan, np.isnan(second)) and np.array_equal(first[~nan].view(np.int32), second[~nan].view("i4"))


CASE = {"size": SIZES, "seed": st.integers(0, 2**32 - 1), "dtype": st.sampled_from(["fp32", "bf16"])}


@needs_numba
@settings(max_examples=40, deadline=None)
@given(**CASE, low=st.integers(0, (1 << HIGH_BITS) - 1), width=st.sampled_from([1, 5, 1 << LOW_BITS, 3 << LOW_BITS]))
def test_changes_and_their_counts_are_the_same_both_ways(size, seed, dtype, low, width):
    model, base = numbers(size, seed, dtype), numbers(size, seed + 1, dtype)
    deltas, counts, between, above = [], [], [], []
    for way in (compiled, plain):
        deltas.append(np.empty(size, np.float32))
        way.change(model, base, deltas[-1])
        counts.append(np.ones(1 << HIGH_BITS, np.int64))
        way.count(model, base, counts[-1])
        between.append(np.ones(width, np.int32))
        above.append(way.count_between(model, base, low << LOW_BITS, between[-1]))
    assert same(*deltas)
    assert np.array_equal(*counts)
    assert np.array_equal(*between)
    assert above[0] == above[1]


@needs_numba
@settings(max_examples=60, deadline=None)
@given(**CASE, share=st.floats(0, 1), kept=st.booleans(), step=st.sampled_from([2048, 3000, 100_000]))
def test_the_same_changes_are_chosen_both_ways(size, seed, dtype, share, kept, step):
    values = numbers(size, seed, "fp32", ties=True)
    magnitudes = values.view(np.int32) & 0x7FFFFFFF
    bits = int(np.sort(magnitudes)[int(share * (size - 1))])
    equal = int((magnitudes == bits).sum())
    found = []
    for way in (compiled, plain):
        choice, chosen = np.array([bits, int(share * equal), equal]), values.copy()
        for start in range(0, size, step):
            way.choose(chosen[start : start + step], choice, kept)
        found.append(chosen)
    assert same(*found)


@needs_numba
@settings(max_examples=60, deadline=None)
@given(
    **CASE,
    n=st.sampled_from([2, 9]),
    by=st.sampled_from([BY_NOBODY, BY_SUM, BY_COUNT]),
    normalize=st.booleans(),
    scale=st.sampled_from([1.0, 0.7, -0.3]),
    has_origin=st.booleans(),
    n_choices=st.integers(0, 2),
)
def test_mixtures_are_the_same_both_ways(size, seed, dtype, n, by, normalize, scale, has_origin, n_choices):
    base = numbers(size, seed, dtype)
    models = tuple(numbers(size, seed + 1 + number, dtype, ties=True) for number in range(n))
    origin = base if has_origin else base[:0]
    weights = np.random.default_rng(seed).normal(size=n)
    one = int(np.float32(0.5).view(np.int32))
    choices = np.array([[[one, size // 20, size // 8], [one * 2, 0, 9]][:n_choices]] * n, np.int64)
    choices = choices.reshape(n if n_choices else 0, n_choices, 3)
    found = []
    for way in (compiled, plain):
        result = np.empty(size, np.float32)
        way.mix(models, origin, choices.copy(), weights, by, normalize, np.float32(scale), base, result)
        found.append(result)
    assert same(*found)


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=30), k=st.integers(0, 60))
def test_the_bin_of_the_kth_is_found(counts, k):
    one_by_one = [bin for bin in reversed(range(len(counts))) for _ in range(counts[bin])]
    bin, quota = reach(np.array(counts, np.int32), k)
    if len(one_by_one) < max(k, 1):
        assert bin == -1
    else:
        assert bin == one_by_one[max(k, 1) - 1]
        assert quota == k - sum(counts[bin + 1 :])


def test_without_numba_averages_are_made_in_torch_and_the_install_command_is_named(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with caplog.at_level("INFO", "vlmrun"):
        assert kernels.kernels.__wrapped__() is plain
    assert "pip install 'vlmrun-trainer[fast]'" in caplog.text


def test_a_numba_that_refuses_this_numpy_is_named_and_done_without(monkeypatch, caplog):
    def refuse():
        raise ImportError("Numba needs NumPy 2.3 or less. Got NumPy 2.4.")

    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(compiled, "compile_loops", refuse)
    assert kernels.kernels.__wrapped__() is plain
    assert "Got NumPy 2.4" in caplog.text


@needs_numba
def test_machine_code_is_made_anew_where_it_cannot_be_kept(monkeypatch):
    import numba

    real, asked = numba.njit, []

    def refusing(*, cache=False, **options):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", refusing)
    with pytest.MonkeyPatch.context() as patch:
        for loop in compiled._PYTHON:  # put back afterwards
            patch.setattr(compiled, loop.__name__, loop)
        compiled.compile_loops.__wrapped__()
        delta = np.empty(3, np.float32)
        compiled.change(np.ones(3, np.float32), np.zeros(3, np.float32), delta)
    assert delta.tolist() == [1, 1, 1]
    assert asked == [True, False] * len(compiled._PYTHON)


@pytest.mark.slow
def test_numba_is_not_loaded_by_importing_what_may_use_it():
    code = "import sys, vlmrun.merging.average, vlmrun.merging.methods.task; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


@needs_numba
def test_no_loop_goes_beyond_its_arrays(tmp_path):
    """Which machine code would not tell: it is made once more with a check of every index."""
    (tmp_path / "run.py").write_text(_EVERY_LOOP)
    checked = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "code")}
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"], env=checked, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fine", "IndexError"]


_EVERY_LOOP = """
import numpy as np
from vlmrun.merging.methods import compiled as kernels
from vlmrun.merging.methods.numbers import BY_COUNT, BY_NOBODY, BY_SUM, HIGH_BITS, reach
kernels.compile_loops()
for size in (1, 100, 2047, 2048, 2049, 6000):
    for dtype in (np.float32, np.uint16):
        numbers, found = np.ones(size, dtype), np.empty(size, np.float32)
        kernels.change(numbers, numbers, found)
        kernels.count(numbers, numbers, np.zeros(1 << HIGH_BITS, np.int64))
        kernels.count_between(numbers, numbers, 0, np.zeros(5, np.int32))
        choices = np.array([[[0, size // 2, size], [0, 1, size]]] * 2)
        for by in (BY_NOBODY, BY_SUM, BY_COUNT):
            for origin in (numbers, numbers[:0]):
                some = (numbers, numbers), origin, choices.copy(), np.ones(2), by
                kernels.mix(*some, True, np.float32(1), numbers, found)
    kernels.choose(found, choices[0, 0], True)
print("fine")
try:
    kernels.change(numbers[:100], numbers[:100], found)
except IndexError as error:
    print("IndexError")
"""
