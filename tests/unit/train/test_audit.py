import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pico import pico_vlm
from vlmrun.config.schema import Tune
from vlmrun.errors import ConfigError, VlmrunError
from vlmrun.model import tune
from vlmrun.train import audit


def _tuned(llm="full", tower="freeze", connector="full"):
    vlm = pico_vlm()
    wanted = Tune(llm=llm, tower=tower, connector=connector)
    tune.apply(vlm, wanted, None)
    return vlm, wanted


def test_the_table_counts_every_parameter_once():
    vlm, wanted = _tuned()
    counts = audit.count(vlm, wanted)
    audit.check(counts)
    assert sum(row.n_parameters for row in counts) == sum(p.numel() for p in vlm.parameters())
    assert {row.part: row.n_trainable for row in counts}["tower"] == 0
    text = audit.table(counts)
    assert [line.split()[0] for line in text.splitlines()] == ["part", "llm", "tower", "connector", "all"]
    assert "1,600" in text


def test_a_part_without_trainable_parameters_is_named():
    vlm, wanted = _tuned(tower="full")
    vlm.tower.requires_grad_(False)
    with pytest.raises(ConfigError, match="the tower is to be trained"):
        audit.check(audit.count(vlm, wanted))


def test_a_frozen_part_with_trainable_parameters_is_named():
    vlm, wanted = _tuned()
    vlm.tower.requires_grad_(True)
    with pytest.raises(ConfigError, match="the tower is frozen but has"):
        audit.check(audit.count(vlm, wanted))


def test_nothing_to_train_is_refused():
    vlm, wanted = _tuned("freeze", "freeze", "freeze")
    with pytest.raises(ConfigError, match="every part is frozen"):
        audit.check(audit.count(vlm, wanted))


@settings(deadline=None)
@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.integers(1, 40), st.data())
def test_a_fingerprint_sees_every_bit_and_every_swap(dtype, n, data):
    tensor = torch.randn(n, 3).to(dtype)
    before = audit.fingerprint(tensor)
    assert audit.fingerprint(tensor.clone()) == before
    row, column = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, 2))
    changed = tensor.clone()
    bits = {4: torch.int32, 2: torch.int16, 8: torch.int64}[dtype.itemsize]
    changed.view(bits)[row, column] ^= 1 << data.draw(st.integers(0, 8 * dtype.itemsize - 2))
    assert audit.fingerprint(changed) != before
    swapped = tensor[:, [1, 0, 2]]
    if not torch.equal(swapped, tensor):
        assert audit.fingerprint(swapped) != before


def test_a_fingerprint_spans_chunks(monkeypatch):
    tensor = torch.arange(1000.0)
    whole = audit.fingerprint(tensor)
    monkeypatch.setattr(audit, "_CHUNK", 7)
    assert audit.fingerprint(tensor) == whole


def _backward(vlm, *, pictures=True):
    ids = torch.tensor([[-200] * 4 + [5, 6, 7]]) if pictures else torch.tensor([[5, 6, 7]])
    pixels = torch.ones(1, 3, 16, 16) if pictures else None
    labels = torch.where(ids == -200, -100, ids)
    vlm(ids, torch.ones_like(ids), pixels, labels).loss.backward()


def _update(vlm, rate=1e-2):
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad


def _proof(vlm):
    return audit.Proof(vlm, lambda parameter: parameter.detach())


def test_a_sound_update_passes_and_takes_its_hooks_away():
    vlm, _ = _tuned()
    proof = _proof(vlm)
    _backward(vlm)
    _update(vlm)
    proof.conclude()
    assert not proof.open
    assert not any(parameter._backward_hooks for parameter in vlm.parameters() if parameter.requires_grad)


def test_a_part_without_gradient_is_named():
    vlm, _ = _tuned(tower="full")
    proof = _proof(vlm)
    _backward(vlm, pictures=False)
    _update(vlm)
    with pytest.raises(VlmrunError) as caught:
        proof.conclude()
    assert [problem.what for problem in caught.value.problems] == [
        "the tower is to be trained but got no gradient",
        "the connector is to be trained but got no gradient",
    ]


def test_a_part_that_does_not_move_is_named():
    vlm, _ = _tuned()
    proof = _proof(vlm)
    _backward(vlm)
    vlm.connector.zero_grad()
    _update(vlm)
    with pytest.raises(VlmrunError, match="the connector got a gradient but did not move"):
        proof.conclude()


def test_a_frozen_tensor_that_changes_by_one_bit_is_named():
    vlm, _ = _tuned()
    proof = _proof(vlm)
    _backward(vlm)
    _update(vlm)
    weight = vlm.tower.model.pre_layrnorm.weight
    weight.data.view(torch.int32)[0] ^= 1
    with pytest.raises(VlmrunError, match=r"the tower is frozen but changed.*pre_layrnorm.weight"):
        proof.conclude()


def test_lora_matrices_that_start_at_rest_are_no_dead_part():
    """B starts at zero, so A gets a zero gradient first; the part as a whole moves."""
    from vlmrun.config.schema import Lora

    vlm = pico_vlm()
    tune.apply(
        vlm,
        Tune(llm="lora", tower="freeze", connector="full"),
        Lora(r=2, alpha=4.0, dropout=0.0, targets="all-linear", bias="none", modules_to_save=[]),
    )
    proof = _proof(vlm)
    _backward(vlm)
    _update(vlm)
    proof.conclude()
