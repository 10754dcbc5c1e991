"""Every averaging method against its definition, computed here on whole tensors in fp64, however tensors are cut."""

import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from vlmrun.config.schema import Method
from vlmrun.merging import methods
from vlmrun.merging.methods import blocks, compiled, plain, task, top_k
from vlmrun.merging.methods.blocks import Piece, Source

# Every test of this file is run with both where numba is installed, as it is by the extra `dev`.
WAYS = ("plain", "compiled") if find_spec("numba") else ("plain",)
VECTORS = {"normalize": False, "scale": 1.0}


@pytest.fixture(params=WAYS, autouse=True)
def way(request, monkeypatch):
    """The kernels that methods call in a test."""
    use(monkeypatch, request.param)
    return request.param


def use(patch, name):
    if name == "compiled":
        compiled.compile_loops()
    for module in (blocks, task, top_k):
        patch.setattr(module, "kernels", lambda: {"plain": plain, "compiled": compiled}[name])


def node(name, **values):
    return TypeAdapter(Method).validate_python({"name": name, **values})


def make(models, weights, method, base=None, step=None):
    """The method's result, whole, in the type it computes in."""
    flat = [model.reshape(-1) for model in models]
    origin = None if base is None else base.reshape(-1)

    def read(start, stop):
        return Piece([model[start:stop] for model in flat], None if origin is None else origin[start:stop])

    source = Source("llm.x.weight", tuple(models[0].shape), read, step)
    return torch.cat(list(methods.combine(source, weights, method))).view_as(models[0])


def tensors(n, shape=(6, 7), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(n)]


def trimmed(delta, density, gamma=0.0):
    """Keeps density * n of the magnitudes, after the gamma * n largest; first come, first kept among equals."""
    n = delta.numel()
    top = min(int(gamma * n), n - int(density * n))
    order = delta.abs().reshape(-1).argsort(descending=True, stable=True)[top : top + int(density * n)]
    mask = torch.zeros(n)
    mask[order] = 1
    return delta * mask.view_as(delta)


def elected(deltas, weights, sign):
    weighted = torch.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    votes = weighted.sum(0) if sign == "sum" else weighted.sign().sum(0)
    agree = weighted.sign() == torch.where(votes >= 0, 1.0, -1.0).double()
    share = (torch.tensor(weights).double()[:, None, None] * agree).sum(0)
    return (weighted * agree).sum(0), share


STEPS = st.sampled_from([None, 1, 5, 7, 13, 100])


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 4),
    raw=st.lists(st.floats(-1.0, 1.0), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    step=STEPS,
)
def test_linear_is_the_weighted_sum_rounded_once(n, raw, dtype, step):
    models = tensors(n, dtype=dtype)
    weights = raw[:n]
    found = make(models, weights, node("linear", sum="any"), step=step)
    exact = sum(weight * model.double() for weight, model in zip(weights, models, strict=True))
    if n == 2 and dtype == torch.bfloat16:  # in fp32: off by 2^-24 of the terms, which are below 8
        assert torch.allclose(found.double(), exact, rtol=0, atol=2**-21)
    else:
        assert torch.allclose(found, exact, rtol=0, atol=1e-14)
        assert torch.equal(found.to(dtype), exact.to(dtype))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 100), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_linear_average_does_not_depend_on_the_order_of_the_models(order, seed, dtype):
    models, weights = tensors(4, seed=seed, dtype=dtype), [0.42, 0.28, 0.2, 0.1]
    method = node("linear", sum="one")
    turned = make([models[i] for i in order], [weights[i] for i in order], method)
    assert torch.equal(turned, make(models, weights, method)), "to the last bit of fp64"
    two = make(models[:2], [0.3, 0.7], method), make(models[1::-1], [0.7, 0.3], method)
    assert torch.equal(*two)


def test_models_of_other_types_are_averaged_too():
    one, two = tensors(2)
    found = make([one, two.bfloat16()], [0.5, 0.5], node("linear", sum="one"))
    assert torch.allclose(found, (one.double() + two.bfloat16().double()) / 2, rtol=0, atol=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 50))
def test_a_linear_average_is_linear(a, b, seed):
    one, two, other = tensors(3, seed=seed)
    method = node("linear", sum="any")
    left = make([a * one + b * two, other], [0.3, 0.7], method)
    right = a * make([one, other], [0.3, 0.0], method) + b * make([two, other], [0.3, 0.0], method) + 0.7 * other
    assert torch.allclose(left.float(), right.float(), atol=1e-5)  # models are rounded to fp32 before


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), STEPS, st.integers(0, 20))
def test_slerp_follows_the_great_circle(t, step, seed):
    a, b = tensors(2, seed=seed)
    found = make([a, b], [1 - t, t], node("slerp", sum="one"), step=step)
    x, y = a.double().reshape(-1), b.double().reshape(-1)
    angle = torch.acos((x @ y) / (x.norm() * y.norm()))
    exact = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    assert torch.allclose(found.reshape(-1), exact, atol=1e-12)
    unit = make([a / a.norm(), b / b.norm()], [1 - t, t], node("slerp", sum="one"))
    assert math.isclose(float(unit.norm()), 1.0, abs_tol=1e-6), "the way stays on the sphere"


def test_slerp_of_collinear_and_empty_tensors_is_a_line():
    (a,) = tensors(1)
    assert torch.allclose(make([a, 3 * a], [0.25, 0.75], node("slerp", sum="one")).float(), 2.5 * a)
    zero = torch.zeros_like(a)
    assert torch.allclose(make([zero, a], [0.5, 0.5], node("slerp", sum="one")).float(), a / 2)
    assert torch.equal(make([a, a], [0.3, 0.7], node("slerp", sum="one")), a)


@pytest.mark.parametrize("normalize", [True, False])
def test_task_arithmetic_adds_changes_to_the_base(normalize):
    base, a, b = tensors(3)
    found = make([a, b], [0.7, 0.6], node("task_arithmetic", normalize=normalize, scale=0.5), base, step=5)
    mixed = 0.7 * (a - base).double() + 0.6 * (b - base).double()
    exact = base.double() + 0.5 * (mixed / 1.3 if normalize else mixed)
    assert torch.allclose(found.double(), exact, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    density=st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.0]),
    sign=st.sampled_from(["sum", "count", None]),
    normalize=st.booleans(),
    step=STEPS,
    coarse=st.booleans(),
)
def test_ties_trims_elects_and_averages(density, sign, normalize, step, coarse):
    base, *models = tensors(4, seed=7)
    if coarse:  # many equal magnitudes: which of them are kept must not depend on how a tensor is cut
        base, models = base.round(), [model.round() for model in models]
    weights = [0.5, 0.3, 0.4]
    deltas = [trimmed((model - base).double(), density) for model in models]
    if sign is None:
        mixed, share = sum(w * d for w, d in zip(weights, deltas, strict=True)), torch.tensor(1.2).double()
    else:
        mixed, share = elected(deltas, weights, sign)
    exact = base.double() + 0.8 * (mixed / torch.where(share == 0, 1.0, share) if normalize else mixed)
    method = node("ties", density=density, sign=sign, normalize=normalize, scale=0.8)
    assert torch.allclose(make(models, weights, method, base, step).double(), exact, atol=1e-6)


def test_ties_takes_a_density_for_each_model():
    base, a, b = tensors(3)
    method = node("ties", density=[0.1, 1.0], sign=None, **VECTORS)
    exact = base + trimmed(a - base, 0.1) + (b - base)
    assert torch.allclose(make([a, b], [1.0, 1.0], method, base), exact, atol=1e-6)


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.5), (0.2, 0.0), (1.0, 0.3)])
def test_breadcrumbs_drops_both_ends(density, gamma):
    base, a, b = tensors(3, (11, 9))
    for sign in (None, "sum"):
        method = node("breadcrumbs", density=density, gamma=gamma, sign=sign, **VECTORS)
        deltas = [trimmed((model - base).double(), density, gamma) for model in (a, b)]
        mixed = sum(deltas) if sign is None else elected(deltas, [1.0, 1.0], sign)[0]
        for step in (None, 9, 40):
            assert torch.allclose(make([a, b], [1.0, 1.0], method, base, step).double(), base + mixed, atol=1e-6)


@pytest.mark.parametrize("rescale", [True, False])
def test_dare_keeps_a_random_share_whatever_the_cut(rescale):
    base, a, b = tensors(3, (100, 100))
    method = node("dare", density=0.3, rescale=rescale, sign=None, seed=5, **VECTORS)
    found = make([a, base], [1.0, 1.0], method, base)
    kept = (found - base).abs() > 1e-7
    assert abs(kept.float().mean() - 0.3) < 0.02  # four standard deviations of a mean of 10,000 draws
    factor = 1 / 0.3 if rescale else 1.0
    assert torch.allclose((found - base)[kept], factor * (a - base)[kept], atol=1e-5)
    for step in (100, 1700, 9999):
        assert torch.equal(make([a, base], [1.0, 1.0], method, base, step), found)
    assert not torch.equal(make([a, base], [1.0, 1.0], method.model_copy(update={"seed": 6}), base), found)
    both = make([a, b], [1.0, 1.0], method.model_copy(update={"sign": "sum"}), base)
    halves = [make([model, base], [1.0, 1.0], method, base) - base for model in (a, b)]
    assert not torch.allclose(both - base, sum(halves), atol=1e-3), "models are thinned apart and signs are elected"


def test_della_gives_large_changes_better_chances():
    base, a = torch.zeros(200, 50), tensors(1, (200, 50))[0]
    method = node("della", density=0.5, epsilon=0.3, rescale=True, sign=None, seed=1, **VECTORS)
    found = make([a, base], [1.0, 1.0], method, base)
    place = a.abs().argsort(dim=1).argsort(dim=1)
    chance = 0.2 + 0.6 * place / 49
    kept = found != 0
    assert torch.allclose(found[kept], (a / chance)[kept], atol=1e-5)
    assert abs(kept[place > 40].float().mean() - chance[place > 40].mean()) < 0.05
    assert abs(kept[place < 9].float().mean() - chance[place < 9].mean()) < 0.05
    assert torch.equal(make([a, base], [1.0, 1.0], method, base, step=150), found)


@pytest.mark.parametrize("step", [None, 7, 10])
def test_model_stock_moves_by_agreement(step):
    base, a, b, c = tensors(4)
    models = [base + 0.5 * a + 0.2 * b, base + 0.5 * a + 0.3 * c, base + 0.4 * a]
    found = make(models, [1 / 3] * 3, node("model_stock"), base, step)
    deltas = [(model - base).double().reshape(-1) for model in models]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosine = sum(float(torch.nn.functional.cosine_similarity(deltas[i], deltas[j], dim=0)) for i, j in pairs) / 3
    ratio = 3 * cosine / (1 + 2 * cosine)
    exact = base.double() + ratio * (sum(deltas) / 3).view_as(base)
    assert torch.allclose(found.double(), exact, atol=1e-6)
    opposite = make([base + a, base - a], [0.5, 0.5], node("model_stock"), base)
    assert torch.allclose(opposite, base, atol=1e-6), "changes that cancel leave the base"


def changes(tensor, step=None):
    """A tensor as what one model changed of a base of zeros."""
    return Source("x", (len(tensor),), lambda start, stop: Piece([tensor[start:stop]], torch.zeros(stop - start)), step)


def chosen(tensor, choice, step, kept=True):
    """The tensor behind a choice that saw it in pieces of `step`; the choice is used up."""
    found = tensor.clone()
    for piece in found.split(step):
        blocks.kernels().choose(piece.numpy(), choice, kept)
    return found


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0, -1.0]), min_size=1, max_size=60),
    share=st.floats(0, 1),
    step=st.integers(1, 20),
    sample=st.sampled_from([None, (1, 1), (2, 3), (4, 2)]),
)
def test_the_largest_are_chosen_exactly_and_first_come_first_kept(values, share, step, sample):
    tensor = torch.tensor(values)
    k = int(share * len(values))
    with pytest.MonkeyPatch.context() as patch:
        if sample is not None:  # which misleads as often as not
            patch.setattr(top_k, "_PLACES", sample[0])
            patch.setattr(top_k, "_PLACE", sample[1])
            patch.setattr(top_k, "_FEWEST", sample[0] * sample[1] + 1)
        choices = top_k.largest(changes(tensor, step), [[k]])
    wanted = torch.zeros(len(values), dtype=torch.bool)
    wanted[tensor.abs().argsort(descending=True, stable=True)[:k]] = True
    assert torch.equal(chosen(tensor, choices[0, 0].copy(), step), tensor * wanted)
    assert torch.equal(chosen(tensor, choices[0, 0].copy(), step, kept=False), tensor * ~wanted)


@pytest.mark.parametrize("step", [2, 3, 8])
@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 4]), (3, [1, 4, 7]), (4, [1, 2, 4, 7])])
def test_what_is_no_number_counts_as_the_largest(step, k, expected):
    nan = float("nan")
    tensor = torch.tensor([1.0, nan, -float("inf"), 3.0, nan, 2.0, 0.0, nan])
    choices = top_k.largest(changes(tensor), [[k]])
    kept = chosen(tensor, choices[0, 0].copy(), step)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[expected] = True
    assert torch.equal(kept[mask].isnan(), tensor[mask].isnan())
    assert not kept[~mask & tensor.isfinite()].any()
    assert kept[~mask & tensor.isnan()].isnan().all(), "what is no number is never made one"


def test_a_sample_tells_where_to_count_and_a_misleading_one_costs_looks(monkeypatch):
    monkeypatch.setattr(top_k, "_FEWEST", 1)
    monkeypatch.setattr(top_k, "_PLACE", 256)
    (even,) = tensors(1, (1 << 16,))
    torn = even.clone()
    torn.view(top_k._PLACES, -1)[:, :256] *= 1e-3  # just where a sample is taken
    for tensor, least, most in ((even, 1.0, 1.1), (torn, 2.0, 3.1)):
        source, looked = changes(tensor, 1 << 12), []
        read = source.read
        source.read = lambda start, stop, read=read, looked=looked: looked.append(stop - start) or read(start, stop)
        choices = top_k.largest(source, [[len(tensor) // 5]])
        assert torch.equal(chosen(tensor, choices[0, 0], 1000), trimmed(tensor, 0.2))
        assert least * len(tensor) < sum(looked) < most * len(tensor)


METHODS = {
    "task_arithmetic": VECTORS,
    "ties": {"density": 0.3, "sign": "sum", "normalize": True, "scale": 0.7},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1, "sign": "count", "normalize": True, "scale": 1.0},
    "dare": {"density": 0.5, "sign": "sum", "rescale": True, "seed": 1, **VECTORS},
    "model_stock": {},
}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    n=st.integers(2, 5),
    step=st.sampled_from([None, 700, 1400, 3000]),
)
def test_the_bits_of_bf16_are_taken_as_the_numbers_they_are(name, n, step):
    *models, base = tensors(n + 1, (9, 700), dtype=torch.bfloat16)
    method = node(name, **METHODS[name])
    found = make(models, [0.5] * n, method, base, step)
    wide = make([model.float() for model in models], [0.5] * n, method, base.float(), step)
    assert torch.equal(found, wide)
    mixed = make([models[0].float(), *models[1:]], [0.5] * n, method, base, step)
    assert torch.equal(found, mixed), "models of several types"


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(METHODS)), n=st.integers(2, 5), step=st.sampled_from([11, 700, 2048, 3000]))
def test_no_result_depends_on_how_a_tensor_is_cut(name, n, step):
    """Magnitudes in eighths: many of them are equal to the deciding one, in every block."""
    *models, base = ((tensor * 8).round() / 8 for tensor in tensors(n + 1, (6, 700)))
    method, weights = node(name, **METHODS[name]), [0.33, 0.31, 0.27, -0.2, 0.5][:n]
    step = 700 * -(-step // 700) if name == "dare" else step
    assert torch.equal(make(models, weights, method, base, step), make(models, weights, method, base))


@pytest.mark.parametrize("sign", [None, "sum", "count"])
def test_equal_magnitudes_are_kept_first_come_in_every_block(sign):
    *models, base = ((tensor * 8).round() / 8 for tensor in tensors(3, (5, 1500)))
    weights = [0.75, 0.5]  # whose sums are exact, so that their sign is
    deltas = [trimmed(model - base, 0.55, 0.02).double() for model in models]
    method = node("breadcrumbs", density=0.55, gamma=0.02, sign=sign, normalize=False, scale=1.0)
    exact = (
        sum(w * d for w, d in zip(weights, deltas, strict=True)) if sign is None else elected(deltas, weights, sign)[0]
    )
    assert torch.allclose(make(models, weights, method, base).double(), base + exact, atol=1e-6)


def test_sums_of_weights_are_rounded_once():
    *models, base = tensors(4, (3, 700))
    weights = [0.33, 0.31, 0.27]
    found = make(models, weights, node("task_arithmetic", normalize=True, scale=1.0), base)
    total = sum((weight * (model - base) for weight, model in zip(weights, models, strict=True)), torch.zeros(()))
    assert torch.equal(found, base + total / torch.tensor(sum(weights)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2049,)])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_tensors_of_any_size(name, shape):
    *models, base = tensors(3, shape)
    if base.numel():
        found = make(models, [0.5, 0.5], node(name, **METHODS[name]), base)
        assert found.isfinite().all()
    else:
        source = Source("x", shape, lambda start, stop: pytest.fail("there is nothing to read"))
        assert list(methods.combine(source, [0.5, 0.5], node(name, **METHODS[name]))) == []
