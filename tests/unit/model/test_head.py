"""The loss without logits: equal to the plain one, in every LLM that it claims to understand."""

import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, linear

from tests import families
from tests.families import TINY, WITHOUT_ROW
from tests.pico import N_PATCHES, pico_vlm
from vlmrun.ids import IGNORE, IMAGE_TOKEN
from vlmrun.model.head import Head, find_tail
from vlmrun.model.loss import ChunkedLoss, Chunks, Tail, count, supervised

TAILS = [Tail(), Tail(divide=8.0), Tail(times=0.0625), Tail(cap=3.0), Tail(divide=0.5, cap=2.0)]
FAMILIES = [*TINY, *WITHOUT_ROW]


def make_llm(family, **changes):
    return families.make_llm(family, **{"vocab_size": 61, **changes})


def _gradients(total, leaves):
    return [None if leaf is None else grad for leaf, grad in _pairs(total, leaves)]


def _pairs(total, leaves):
    given = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(total, given, allow_unused=True))
    return [(leaf, next(found) if leaf is not None and leaf.requires_grad else None) for leaf in leaves]


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 2**31))
    rows, length, width = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 12))
    vocabulary, share = draw(st.integers(1, 30)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    made = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, width, generator=made)
    weight = torch.randn(vocabulary, width, generator=made).requires_grad_(draw(st.booleans()))
    bias = torch.randn(vocabulary, generator=made).requires_grad_(weight.requires_grad) if draw(st.booleans()) else None
    labels = torch.randint(0, vocabulary, (rows, length), generator=made)
    labels[torch.rand(rows, length, generator=made) >= share] = IGNORE
    return hidden.requires_grad_(), weight, bias, labels


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 40), st.sampled_from(TAILS), st.sampled_from([1.0, 0.125, 1000.0]))
def test_loss_and_gradients_are_the_plain_ones(problem, chunk, tail, factor):
    hidden, weight, bias, labels = problem
    logits = tail(linear(hidden, weight, bias))
    shifted = labels[:, 1:].flatten()
    truth = cross_entropy(logits[:, :-1].flatten(0, 1), shifted, ignore_index=IGNORE, reduction="sum")
    chosen, targets = supervised(hidden, labels)
    total = ChunkedLoss.apply(chosen, weight, bias, targets, Chunks(chunk, tail, True))
    assert len(targets) == count(labels)
    torch.testing.assert_close(total, truth, rtol=1e-5, atol=1e-5)
    expected = _gradients(truth * factor, [hidden, weight, bias])
    for mine, other in zip(_gradients(total * factor, [hidden, weight, bias]), expected, strict=True):
        if other is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-6 * factor * max(1, len(targets)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [32, 31])  # at 32 the head's gradient in bf16 comes out of one product
def test_small_types_are_as_near_the_truth_as_the_plain_loss(dtype, width):
    torch.manual_seed(0)
    exact = [torch.randn(64, width) * 0.5, torch.randn(200, width) * 0.2]
    targets = torch.randint(0, 200, (64,))

    def run(compute, to, scale=1.0):
        hidden, weight = (value.to(to).requires_grad_() for value in exact)
        total = compute(hidden, weight)
        grads = torch.autograd.grad(total * scale, [hidden, weight])
        return [total.double().detach(), *(grad.double() / scale for grad in grads)]

    plain = lambda h, w: cross_entropy(linear(h, w).float(), targets, reduction="sum")  # noqa: E731
    chunked = lambda h, w: ChunkedLoss.apply(h, w, None, targets, Chunks(10, Tail(), True))  # noqa: E731
    truth = run(plain, torch.float32)
    rounded = run(plain, dtype, 64.0)
    found = run(chunked, dtype, 64.0)
    for value, same, reference in zip(found, rounded, truth, strict=True):
        error, usual = (value - reference).norm(), (same - reference).norm()
        assert error <= 1.5 * usual, "no less exact than rounding makes the plain loss"
    weight = exact[1].to(dtype).requires_grad_()
    total = chunked(exact[0].to(dtype), weight)
    assert total.dtype == torch.float32
    assert torch.autograd.grad(total, weight)[0].dtype == dtype


def test_fp16_keeps_gradients_that_only_the_loss_scale_lifts():
    """A probability of 2e-8 is 0 in fp16; scaled by 2**16 afterwards it must still be there."""
    weight = torch.zeros(2, 1, dtype=torch.float16)
    weight[0], weight[1] = 1.0, -1.0
    hidden = torch.full((1, 1), 8.5, dtype=torch.float16, requires_grad=True)
    total = ChunkedLoss.apply(hidden, weight, None, torch.tensor([0]), Chunks(1, Tail(), True))
    (grad,) = torch.autograd.grad(total * 2.0**16, hidden)
    exact = hidden.detach().float().requires_grad_()
    cross_entropy(linear(exact, weight.float()), torch.tensor([0])).backward()
    assert grad.item() == pytest.approx(exact.grad.item() * 2.0**16, rel=0.05)
    assert abs(grad.item()) > 1e-3


def test_a_second_backward_pass_is_refused():
    hidden = torch.randn(3, 4, requires_grad=True)
    total = ChunkedLoss.apply(hidden, torch.randn(5, 4), None, torch.tensor([1, 2, 3]), Chunks(2, Tail(), True))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_autocast_computes_in_bf16_and_hands_back_fp32():
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    targets = torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        total = ChunkedLoss.apply(hidden, weight, None, targets, Chunks(4, Tail(), True))
        plain = cross_entropy(linear(hidden, weight).float(), targets, reduction="sum")
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=1e-5)
    for mine, other in zip(_gradients(total, [hidden, weight]), _gradients(plain, [hidden, weight]), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=5e-2)


class _Biggest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest new tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        known = {given.untyped_storage().data_ptr() for given in args if isinstance(given, torch.Tensor)}
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.most = max(self.most, tensor.numel())
        return made


class _Types(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the types of new tensors of one shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.types = shape, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape == self.shape:
            self.types.add(made.dtype)
        return made


@pytest.mark.parametrize("trained", [False, True])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk_or_the_head(trained):
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=trained)
    with _Biggest() as made:
        ChunkedLoss.apply(hidden, weight, None, torch.arange(64), Chunks(8, Tail(), True)).backward()
    assert made.most == 8 * 1000


def test_a_head_in_bf16_needs_no_sum_in_fp32_for_few_positions():
    def types(positions):
        hidden, weight = (torch.randn(n, 16).bfloat16().requires_grad_() for n in (positions, 1000))
        with _Types(weight.shape) as made:
            ChunkedLoss.apply(hidden, weight, None, torch.arange(positions), Chunks(8, Tail(), True)).backward()
        return made.types

    assert types(32) == {torch.bfloat16}
    assert types(33) == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("trained", [True, False])
def test_every_family_has_the_loss_and_gradients_of_its_own_logits(family, trained):
    llm = make_llm(family).requires_grad_(trained)
    expected = {
        "granite": Tail(divide=3.0),
        "cohere": Tail(times=0.25),
        "gemma2": Tail(cap=2.0),
        "cohere2": Tail(times=0.25),
    }
    assert find_tail(llm) == expected.get(family, Tail())
    embeds = torch.randn(2, 7, 32, requires_grad=True)
    labels = torch.randint(0, 61, (2, 7))
    labels[:, :3] = IGNORE
    inputs = {"inputs_embeds": embeds, "attention_mask": torch.ones(2, 7, dtype=torch.bool)}
    plain, logits = Head(llm).loss_sum(llm, labels, inputs)
    total, none = Head(llm, "chunked", 3).loss_sum(llm, labels, inputs)
    assert logits.shape == (2, 7, 61)
    assert none is None
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=1e-5)
    leaves = [embeds, *(p for p in llm.parameters() if p.requires_grad)]
    grads = [torch.autograd.grad(value, leaves, allow_unused=True) for value in (total, plain)]
    assert sum(grad is not None for grad in grads[1]) > (10 if trained else 0)
    for mine, other in zip(*grads, strict=True):
        assert (mine is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "phi", "granite", "gemma2"])
def test_liger_is_given_what_it_needs(family, monkeypatch):
    """A stand-in for its kernel, which computes what its documentation says: no scale, a bias and a cap."""

    def kernel(given, weight, target, bias=None, reduction="mean", softcap=None, accum_dtype=None):
        assert (reduction, accum_dtype) == ("sum", torch.float32)
        return cross_entropy(Tail(cap=softcap)(linear(given, weight, bias)).float(), target, reduction=reduction)

    module = types.ModuleType("liger_kernel.transformers.functional")
    module.liger_fused_linear_cross_entropy = kernel
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    llm = make_llm(family)
    embeds = torch.randn(1, 7, 32, requires_grad=True)
    for labels in (torch.randint(0, 61, (1, 7)), torch.full((1, 7), IGNORE)):
        plain, _ = Head(llm).loss_sum(llm, labels, {"inputs_embeds": embeds})
        total, none = Head(llm, "liger").loss_sum(llm, labels, {"inputs_embeds": embeds})
        assert none is None
        torch.testing.assert_close(total, plain, rtol=1e-5, atol=1e-5)
        leaves = [embeds, *llm.parameters()]
        grads = [torch.autograd.grad(value, leaves, allow_unused=True) for value in (total, plain)]
        for mine, other in zip(*grads, strict=True):
            if other is not None:
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


class _Packed(nn.Linear):
    """As bitsandbytes has them: a linear layer by inheritance only."""


class _Odd(nn.Module):
    """A head that is a linear layer and something else."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, hidden):
        return self.head(hidden) + 1


def _odd_heads():
    from transformers import LlamaForCausalLM

    class Squared(LlamaForCausalLM):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = output.logits**2
            return output

    class Doubled(LlamaForCausalLM):
        """What the decoder gives is not what the head takes."""

        def forward(self, **inputs):
            hidden = self.model(**{key: value for key, value in inputs.items() if key != "labels"})[0]
            output = super().forward(**inputs)
            output.logits = self.lm_head(hidden * 2)
            return output

    class Shifted(LlamaForCausalLM):
        def forward(self, inputs_embeds, **inputs):
            return super().forward(inputs_embeds=inputs_embeds + 1, **inputs)

    llm = make_llm("llama")
    for kind in (Squared, Doubled, Shifted):
        changed = kind(llm.config)
        changed.load_state_dict(llm.state_dict())
        yield changed
    llm.lm_head = _Odd(llm.lm_head)
    yield llm
    llm = make_llm("llama")
    llm.lm_head = _Packed(32, 61)
    yield llm


def test_an_llm_that_does_something_else_has_its_full_logits_computed(caplog):
    for llm in _odd_heads():
        with caplog.at_level("INFO", "vlmrun"):
            head = Head(llm, "chunked", 4)
        assert head.kind == "plain"
        labels = torch.randint(0, 61, (1, 5))
        total, logits = head.loss_sum(llm, labels, {"inputs_embeds": torch.randn(1, 5, 32)})
        truth = cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
        torch.testing.assert_close(total, truth)
    assert "computed from its full logits" in caplog.text


def test_a_module_that_is_no_llm_of_transformers_is_not_understood():
    assert find_tail(nn.Linear(3, 3)) is None


def test_the_probe_leaves_no_trace():
    llm = make_llm("llama")
    torch.manual_seed(3)
    find_tail(llm)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2)), "no random number of the run is used up"
    assert "forward" not in vars(llm.lm_head)
    assert "forward" not in vars(llm.model)


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_vlm_learns_the_same(tuned, share):
    """Through pictures, PEFT's wrapper and gradient checkpointing."""
    vlm = pico_vlm().train()
    if tuned == "lora":
        from vlmrun.config.schema import Lora, Tune
        from vlmrun.model import tune

        lora = Lora(r=4, alpha=8.0, dropout=0.0, targets="all-linear", bias="none", modules_to_save=[])
        tune.apply(vlm, Tune(llm="lora", tower="freeze", connector="full"), lora)
        for name, parameter in vlm.llm.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)  # gradients of ordinary size, not of 100
    vlm.set_gradient_checkpointing(True)
    ids = torch.tensor([[0, *[IMAGE_TOKEN] * N_PATCHES, 9, 10, 11, 12], [0, 5, 6, 7, 8, 9, 10, 11, 12]])
    labels = ids.masked_fill(ids < 0, IGNORE)
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) >= share] = IGNORE
    pixels = torch.randn(1, 3, vlm.image_size, vlm.image_size)

    def gradients():
        vlm.zero_grad()
        output = vlm(ids, torch.ones_like(ids), pixels, labels)
        output.loss_sum.backward()
        return output, {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}

    truth, expected = gradients()
    vlm.head = Head(vlm.llm, "chunked", 2)
    found, grads = gradients()
    assert found.logits is None
    assert found.n_supervised == truth.n_supervised == count(labels)
    torch.testing.assert_close(found.loss_sum, truth.loss_sum, rtol=1e-6, atol=1e-5)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5, msg=name)
    if share == 0.0:
        assert not any(grad.any() for grad in grads.values())


def test_nothing_is_differentiated_without_gradients():
    vlm = pico_vlm()
    vlm.head = Head(vlm.llm, "chunked", 2)
    ids = torch.arange(6)[None]
    with torch.no_grad(), _Biggest() as made:
        output = vlm(ids, torch.ones_like(ids), None, ids)
    assert not output.loss_sum.requires_grad
    assert made.most < vlm.llm.lm_head.weight.numel()
