"""The VLM's forward pass and greedy generation, on real (pico) parts."""

import pytest
import torch
import torch.nn.functional as F

from tests.pico import IMAGE_SIZE, N_PATCHES, pico_vlm
from vlmrun.errors import DataError
from vlmrun.ids import IMAGE_TOKEN

KINDS = ["clip", "siglip"]
IMAGE = [IMAGE_TOKEN] * N_PATCHES


def _pixels(n, seed=0):
    return torch.randn(n, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def _padded(rows, *, left=False):
    """Ids and mask of rows of different lengths; the padding token is 1."""
    length = max(map(len, rows))
    pads = [[1] * (length - len(row)) for row in rows]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)])
    ones = [[1] * len(row) for row in rows]
    zeros = [[0] * len(pad) for pad in pads]
    mask = torch.tensor([zero + one if left else one + zero for zero, one in zip(zeros, ones, strict=True)])
    return ids, mask


@pytest.mark.parametrize("tower", KINDS)
def test_images_enter_as_a_hand_made_forward_says(tower):
    vlm = pico_vlm(tower=tower)
    pixels = _pixels(2)
    ids, mask = _padded([[0, 7, *IMAGE, 9], [0, *IMAGE, 11, 12, 13, 4]])
    logits = vlm(ids, mask, pixels).logits

    hidden = vlm.tower.model(pixels, output_hidden_states=True).hidden_states[-2]
    features = vlm.connector([hidden[:, 1:] if tower == "clip" else hidden])
    table = vlm.llm.get_input_embeddings()
    embeds = torch.stack(
        [
            torch.cat([table(ids[0, :2]), features[0], table(ids[0, 2 + N_PATCHES :])]),
            torch.cat([table(ids[1, :1]), features[1], table(ids[1, 1 + N_PATCHES :])]),
        ]
    )
    expected = vlm.llm(inputs_embeds=embeds, attention_mask=mask).logits
    assert torch.allclose(logits, expected, atol=1e-6)


def test_the_loss_is_the_shifted_mean_over_supervised_tokens():
    vlm = pico_vlm()
    ids, mask = _padded([[0, *IMAGE, 9, 10, 11], [0, 5, 6]])
    labels = torch.full_like(ids, -100)
    labels[0, -2:] = ids[0, -2:]
    labels[1, 1] = ids[1, 1]
    output = vlm(ids, mask, _pixels(1), labels)
    probabilities = output.logits.double().log_softmax(-1)
    picked = [probabilities[0, -3, ids[0, -2]], probabilities[0, -2, ids[0, -1]], probabilities[1, 0, ids[1, 1]]]
    assert output.loss.item() == pytest.approx(-sum(p.item() for p in picked) / 3, abs=1e-5)
    assert vlm(ids, mask, _pixels(1)).loss is None


def test_without_a_picture_features_have_no_effect_on_loss_or_gradient_but_stay_in_the_graph():
    vlm = pico_vlm()
    ids, mask = _padded([[0, 7, 8, 9, 4], [0, 5, 6]])
    labels = ids.masked_fill(mask == 0, -100)
    vlm(ids, mask, None, labels).loss.backward()
    for part in (vlm.connector, vlm.tower):
        grads = [p.grad for p in part.parameters() if not any(p is u for u in vlm.tower.unused())]
        assert all(grad is not None and not grad.any() for grad in grads)
    with_blank = {name: p.grad.clone() for name, p in vlm.llm.named_parameters()}
    vlm.zero_grad()
    logits = vlm.llm(input_ids=ids, attention_mask=mask).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    assert torch.allclose(vlm(ids, mask, None, labels).loss, loss, rtol=1e-6), "the text model, to the order of a sum"
    for name, parameter in vlm.llm.named_parameters():
        assert torch.allclose(parameter.grad, with_blank[name], atol=1e-7), name


def test_the_collators_blank_picture_means_no_picture():
    vlm = pico_vlm()
    ids, mask = _padded([[0, 7, 8, 9]])
    blank = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(vlm(ids, mask, blank).logits, vlm(ids, mask, None).logits)


def test_pictures_and_positions_that_do_not_fit_are_errors():
    vlm = pico_vlm()
    text, mask = _padded([[0, 7, 8]])
    with pytest.raises(DataError, match="4 image tokens but the text has 0"):
        vlm(text, mask, _pixels(1))
    seen, mask = _padded([[0, *IMAGE, 8]])
    with pytest.raises(DataError, match="8 image tokens but the text has 4"):
        vlm(seen, mask, _pixels(2))
    with pytest.raises(DataError, match="no image was given"):
        vlm(seen, mask, None)


def test_a_row_does_not_depend_on_the_other_rows():
    vlm = pico_vlm()
    row = [0, 7, *IMAGE, 9, 10]
    pixels = _pixels(2)
    alone = vlm(*_padded([row]), pixels[:1]).logits[0]
    for other in ([0, *IMAGE, 9, 10, 11, 12, 13], [0, *IMAGE, 200, 201, 4, 4, 4]):
        ids, mask = _padded([row, other])
        together = vlm(ids, mask, torch.stack([pixels[0], pixels[1] * len(other)])).logits[0, : len(row)]
        assert torch.allclose(alone, together, atol=1e-5)


def _naive_greedy(vlm, row, pixels, n_new, eos_ids):
    new = []
    while len(new) < n_new:
        token = int(vlm(*_padded([row + new]), pixels).logits[0, -1].argmax())
        new.append(token)
        if token in eos_ids:
            break
    return new


def test_generation_is_the_naive_greedy_loop_also_left_padded():
    vlm = pico_vlm(seed=3)
    rows = [[0, 7, *IMAGE, 9, 10, 2], [0, *IMAGE, 3], [0, 5, 17, 9]]
    pixels = _pixels(2)
    own = [pixels[:1], pixels[1:], None]
    free = [_naive_greedy(vlm, row, picture, 8, []) for row, picture in zip(rows, own, strict=True)]
    eos_ids = [free[1][3], 300]  # so that the second row ends early
    expected = [_naive_greedy(vlm, row, picture, 8, eos_ids) for row, picture in zip(rows, own, strict=True)]
    ids, mask = _padded(rows, left=True)
    found = vlm.generate(ids, mask, pixels, max_new_tokens=8, eos_ids=eos_ids)
    for row, answer in zip(found.tolist(), expected, strict=True):
        assert row[: len(answer)] == answer
        assert set(row[len(answer) :]) <= {eos_ids[0]}
    assert any(len(answer) < 8 for answer in expected)


def test_a_streamer_hears_every_new_token():
    class Ear:
        def __init__(self):
            self.heard, self.ended = [], False

        def put(self, value):
            self.heard += value.flatten().tolist()

        def end(self):
            self.ended = True

    vlm, ear = pico_vlm(seed=3), Ear()
    ids, mask = _padded([[0, 7, *IMAGE, 9]])
    found = vlm.generate(ids, mask, _pixels(1), max_new_tokens=5, eos_ids=[4], streamer=ear)
    assert (ear.heard, ear.ended) == (found[0].tolist(), True)
    vlm.train()
    with pytest.raises(AssertionError, match="eval mode"):
        vlm.generate(ids, mask, _pixels(1), max_new_tokens=5, eos_ids=[4])


def test_generation_ignores_sampling_that_came_with_the_llm():
    vlm = pico_vlm(seed=3)
    ids, mask = _padded([[0, 7, *IMAGE, 9]])
    plain = vlm.generate(ids, mask, _pixels(1), max_new_tokens=6, eos_ids=[4])
    vlm.llm.generation_config.update(repetition_penalty=50.0, suppress_tokens=plain[0].tolist(), temperature=0.5)
    kept = vlm.llm.generation_config
    assert torch.equal(vlm.generate(ids, mask, _pixels(1), max_new_tokens=6, eos_ids=[4]), plain)
    assert vlm.llm.generation_config is kept


def test_a_frozen_tower_builds_no_graph_and_a_trained_one_does():
    vlm = pico_vlm()
    seen = []
    vlm.tower.register_forward_hook(lambda module, inputs, output: seen.append(output[0].requires_grad))
    ids, mask = _padded([[0, *IMAGE, 9]])
    vlm(ids, mask, _pixels(1))
    vlm.tower.requires_grad_(False)
    output = vlm(ids, mask, _pixels(1), ids.masked_fill(ids < 0, -100))
    assert seen == [True, False]
    output.loss.backward()
    assert all(p.grad is not None for p in vlm.connector.parameters())


@pytest.mark.parametrize("tower", KINDS)
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(tower):
    vlm = pico_vlm(tower=tower).train()
    ids, mask = _padded([[0, 7, *IMAGE, 9, 10]])
    labels = ids.masked_fill(ids < 0, -100)
    calls = []
    first = vlm.llm.model.layers[0].self_attn
    first.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients():
        vlm.zero_grad()
        calls.clear()
        loss = vlm(ids, mask, _pixels(1), labels).loss
        loss.backward()
        grads = {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}
        return loss.detach(), grads, len(calls)

    plain = gradients()
    vlm.set_gradient_checkpointing(True)
    recomputed = gradients()
    vlm.set_gradient_checkpointing(False)
    again = gradients()
    assert (plain[2], recomputed[2], again[2]) == (1, 2, 1), "the layer ran once more in the backward pass"
    assert torch.equal(plain[0], recomputed[0])
    assert plain[1].keys() == recomputed[1].keys()
    for name, grad in plain[1].items():
        assert torch.allclose(grad, recomputed[1][name], atol=1e-7), name


def test_bf16_runs_whole():
    vlm = pico_vlm(dtype=torch.bfloat16)
    ids, mask = _padded([[0, *IMAGE, 9]])
    output = vlm(ids, mask, _pixels(1), ids.masked_fill(ids < 0, -100))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert vlm(ids[:, -1:], mask[:, -1:], None).logits.dtype == torch.bfloat16


def test_sizes_come_from_the_parts():
    vlm = pico_vlm()
    assert (vlm.image_tokens(None), vlm.image_size) == (N_PATCHES, IMAGE_SIZE)
    assert {name.partition(".")[0] for name, _ in vlm.named_parameters()} == {"llm", "tower", "connector"}
