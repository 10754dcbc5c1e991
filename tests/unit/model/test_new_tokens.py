"""Tokens added to a vocabulary, and training of their rows alone."""

import pytest
import torch

from tests.pico import IMAGE_SIZE, N_PATCHES, pico_llm, pico_loaded, pico_model_config
from vlmrun.config.schema import Tune
from vlmrun.errors import ConfigError
from vlmrun.formats import load as saved
from vlmrun.ids import IMAGE_TOKEN
from vlmrun.model import new_tokens, tune
from vlmrun.model.llm import load
from vlmrun.model.parts import assemble
from vlmrun.weights import native

HOW = {"dtype": torch.float32, "attention": "sdpa"}
ADDED = ["<im_start>", "<im_end>"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spare", [0, 1, 7])
def test_new_rows_are_the_mean_of_those_before(tmp_path, tied, spare):
    n = load(str(pico_llm(tmp_path / "a")), **HOW).model.config.vocab_size
    folder = pico_llm(tmp_path / "b", vocab_size=n + spare, tie_word_embeddings=tied)
    plain, grown = load(str(folder), **HOW), load(str(folder), added=ADDED, **HOW)
    first = len(plain.tokenizer)
    assert grown.tokenizer.convert_tokens_to_ids(ADDED) == [first, first + 1]
    assert grown.tokenizer("a<im_start>b")["input_ids"].count(first) == 1
    for get in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(plain.model, get)().weight, getattr(grown.model, get)().weight
        assert torch.equal(after[:first], before[:first])
        mean = before[:first].mean(0).expand(2, -1)
        assert torch.allclose(after[first : first + 2], mean, atol=1e-7)  # a sum in another order
        assert len(after) == max(first + 2, n + spare)
    assert grown.model.config.vocab_size == len(after)
    assert grown.source is None
    assert grown.tokenizer_source is None


def test_a_token_that_is_there_is_not_added_again(tmp_path):
    folder = pico_llm(tmp_path)
    loaded = load(str(folder), added=["<|user|>"], **HOW)
    assert loaded.source == folder
    assert len(loaded.tokenizer) == len(load(str(folder), **HOW).tokenizer)


def _with_tokens(folder, **changes):
    config = pico_model_config(folder)
    return assemble(config.model_copy(update={"new_tokens": ADDED, **changes}), seed=0, **HOW)


def test_a_saved_model_has_the_tokens_at_the_same_ids(tmp_path):
    loaded = _with_tokens(tmp_path / "parts")
    native.save(tmp_path / "weights", loaded, template={}, image_aspect="square", tensors={})
    again = saved.load(tmp_path / "weights", **HOW)
    assert again.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert again.sources["llm"] is not None, "nothing had to be added"
    pairs = zip(loaded.vlm.llm.named_parameters(), again.vlm.llm.named_parameters(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def test_only_the_new_rows_learn(tmp_path):
    loaded = _with_tokens(tmp_path)
    vlm, rows = loaded.vlm, new_tokens.ids_of(loaded.tokenizer, ADDED)
    tune.apply(vlm, Tune(llm="new_tokens", tower="freeze", connector="full"), None, new_rows=rows)
    assert [n for n, p in vlm.named_parameters() if p.requires_grad and n.startswith("llm.")] == [
        "llm.model.embed_tokens.weight"
    ]
    before = vlm.llm.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    ids = torch.tensor([[0, rows[0], *[IMAGE_TOKEN] * N_PATCHES, rows[1], 7, 9]])
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    for _ in range(3):
        vlm(ids, torch.ones_like(ids), pixels, ids.masked_fill(ids < 0, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = vlm.llm.get_input_embeddings().weight
    moved = (after != before).any(1).nonzero().flatten().tolist()
    assert moved == rows


def test_rows_that_cannot_learn_alone_are_refused(tmp_path):
    tied = load(str(pico_llm(tmp_path / "tied", tie_word_embeddings=True)), added=ADDED, **HOW)
    with pytest.raises(ConfigError, match="head is its input embedding"):
        new_tokens.train_rows(tied.model, [1])
    with pytest.raises(ConfigError, match="the model adds none"):
        new_tokens.train_rows(pico_loaded(tmp_path / "own").vlm.llm, [])


def test_sharded_weights_are_refused(tmp_path):
    loaded = load(str(pico_llm(tmp_path)), **HOW)
    next(loaded.model.parameters()).ds_id = 0
    with pytest.raises(ConfigError, match=r"sharded weights(.|\n)*zero=2"):
        new_tokens.add(loaded.model, loaded.tokenizer, ADDED)
