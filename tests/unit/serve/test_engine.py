"""The engine's answers are those of transformers' `generate`, whatever is answered beside them."""

import random
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from PIL import Image

from tests.pico import pico_loaded
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import CheckpointError, DataError, LaunchError
from vlmrun.serve import beginnings, rows
from vlmrun.serve.engine import Engine
from vlmrun.serve.messages import Sampling
from vlmrun.serve.question import Question
from vlmrun.serve.remembered import Prefixes, common
from vlmrun.serve.sampling import Sampler
from vlmrun.serve.served import Served, question


def image(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 14, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(loaded):
    return Served("micro", replace(loaded, template=TEMPLATES["micro"].to_dict()), "square")


class Asked:
    """A question with what came of it."""

    def __init__(self, model, text, images=(), *, sampling=None, max_tokens=12, **more):
        self.parts, self.tokens, self.finish, self.error = [], [], None, None
        prompt = model.conversation([question(text, len(images))], [model.picture(x) for x in images])
        self.question = Question(model, prompt, sampling or Sampling(), max_tokens, self.tell, **more)

    def tell(self, news):
        if isinstance(news, Exception):
            self.error = news
            return
        assert self.finish is None, "nothing follows the end"
        self.parts.append(news.text)
        self.tokens += news.tokens
        self.finish = news.finish

    @property
    def answer(self):
        return "".join(self.parts)


def reference(model, asked):
    """The same by `VLM.generate`, alone."""
    prompt = asked.question.prompt
    ids = torch.tensor([prompt.ids])
    pixels = [torch.from_numpy(picture.tiles) for picture in prompt.pictures]
    new = model.vlm.generate(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.cat(pixels) if pixels else None,
        max_new_tokens=asked.question.max_tokens,
        eos_ids=model.prompts.stop_ids,
        layouts=[picture.layout for picture in prompt.pictures],
    )
    return model.prompts.answer(new[0].tolist())


def questions(model, n=9):
    words = ["What", "colour", "is", "the", "shape", "on", "the", "left", "where", "small", "star", "ring"]
    chance = random.Random(4)
    return [
        Asked(
            model,
            " ".join(chance.choices(words, k=chance.randrange(1, 12))) + "?",
            [image(chance.randrange(3)) for _ in range(chance.randrange(3))],
            max_tokens=chance.randrange(1, 30),
        )
        for _ in range(n)
    ]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("remembered", [0, 2**24])
def test_answers_do_not_depend_on_company(model, batch, remembered):
    engine = Engine(batch=batch, remembered=remembered)
    asked = questions(model)
    for each in asked:  # all at once, then one by one while others are under way
        engine.submit(each.question)
    late = questions(model)
    widest, chance = 0, random.Random(1)
    while engine.busy or late:
        engine.step()
        widest = max(widest, engine.running)
        if late and chance.random() < 0.4:
            asked.append(late.pop())
            engine.submit(asked[-1].question)
    assert widest == batch or batch == 8
    assert [each.answer for each in asked] == [reference(model, each) for each in asked]
    assert {each.finish for each in asked} <= {"stop", "length"}


def test_what_was_computed_before_is_reused(model):
    engine = Engine(batch=2, remembered=2**24)
    first, again = Asked(model, "What is it?", [image(0)]), Asked(model, "What is it?", [image(0)])
    other = Asked(model, "What is it?", [image(1)])
    for each in (first, again, other):
        engine.answer(each.question)
    assert again.answer == first.answer
    assert again.question.reused == len(again.question.prompt.ids) - 1
    places = [at for at, token in enumerate(other.question.prompt.ids) if token < 0]
    assert other.question.reused <= places[0], "another image is another prefix"
    assert (engine.features.hits, engine.features.misses) == (0, 2)
    engine.answer(Asked(model, "Other question about it?", [image(1)]).question)
    assert engine.features.misses == 2


def passes(model, monkeypatch):
    """Rows and new positions of every forward pass from now on."""
    seen, forward = [], model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda cache, **given: seen.append((len(given["lengths"]), given["n_new"])) or forward(cache, **given),
    )
    return seen


def test_prompts_that_arrive_together_are_computed_in_one_pass(model, monkeypatch):
    engine = Engine(batch=8, remembered=2**24)
    engine.answer(Asked(model, "Before?", [image(9)]).question)  # what all of them begin with is known
    asked = [Asked(model, text, [image(n)]) for n, text in enumerate(("What is it?", "Is it a ring?", "Where is it?"))]
    seen = passes(model, monkeypatch)
    for each in asked:
        engine.submit(each.question)
    engine.admit()
    assert seen == [(3, max(len(each.question.prompt.ids) - each.question.reused for each in asked))]
    while engine.busy:
        engine.step()
    assert [each.answer for each in asked] == [reference(model, each) for each in asked]


def test_what_one_could_reuse_of_another_is_not_computed_beside_it(model, monkeypatch):
    engine = Engine(batch=8, remembered=2**24)
    asked = [Asked(model, "What is it?", [image(1)]) for _ in range(3)]
    seen = passes(model, monkeypatch)
    for each in asked:
        engine.submit(each.question)
    while engine.busy:
        engine.step()
    assert [n_new for _, n_new in seen].count(len(asked[0].question.prompt.ids)) == 1
    assert [each.answer for each in asked] == [reference(model, each) for each in asked]


def test_a_short_prompt_does_not_wait_as_long_as_a_long_one(model, monkeypatch):
    engine = Engine(batch=8, remembered=0)
    asked = [Asked(model, "It?"), Asked(model, "What is it " * 9 + "?", [image(1)])]
    seen = passes(model, monkeypatch)
    for each in asked:
        engine.submit(each.question)
    engine.admit()
    assert [rows for rows, _ in seen] == [1]


class Tokens(RuleBasedStateMachine):
    """`Prefixes` against all prompts that were ever kept: what it finds is as long as the best it has."""

    def __init__(self):
        super().__init__()
        self.prefixes, self.kept = Prefixes(4 * 8 * 20), []  # 20 tokens

    def layers(self, key):
        values = torch.tensor([float(token) for token in key]).reshape(1, 1, -1, 1)
        return [(values, values + 0.5)]

    @rule(key=st.lists(st.integers(0, 2), min_size=1, max_size=8))
    def keep(self, key):
        self.prefixes.keep(key, self.layers(key))

    @rule(key=st.lists(st.integers(0, 2), min_size=1, max_size=9))
    def find(self, key):
        known = [each.key for each in self.prefixes._known]
        length, layers = self.prefixes.find(key)
        assert length == max((min(common(each, key), len(key) - 1) for each in known), default=0)
        if length:
            assert layers[0][0].flatten().tolist() == key[:length]

    @invariant()
    def bounded(self):
        known = list(self.prefixes._known)
        assert self.prefixes._held == sum(each.n_bytes for each in known) <= self.prefixes.room
        assert not any(a is not b and b.key[: len(a.key)] == a.key for a in known for b in known)
        assert set(self.prefixes._begins) == {mark for each in known for mark in each.marks}


TestPrefixes = Tokens.TestCase
TestPrefixes.settings = settings(max_examples=30, deadline=None)


def test_memory_has_bounds(model):
    engine = Engine(batch=2, remembered=20_000)
    for seed in range(12):
        engine.answer(Asked(model, f"What is number {seed}?", [image(seed)]).question)
    kept = engine._prefixes["micro"]._known
    assert 0 < sum(known.n_bytes for known in kept) <= 20_000
    assert engine.features._held <= 20_000


def test_cancelled_answers_end_and_others_go_on(model):
    engine = Engine(batch=4, remembered=0)
    long = [Asked(model, f"Question {n}?", max_tokens=40) for n in range(3)]
    expected = reference(model, long[1])
    for each in long:
        engine.submit(each.question)
    for _ in range(4):
        engine.step()
    long[0].question.cancelled = True
    waiting = Asked(model, "Later?")
    waiting.question.cancelled = True
    engine.submit(waiting.question)
    while engine.busy:
        engine.step()
    assert (long[0].finish, waiting.finish) == ("cancelled", "cancelled")
    assert len(long[0].tokens) < 10
    assert long[1].answer == expected


def test_a_seed_gives_the_same_answer_in_any_company(model):
    hot = Sampling(temperature=1.5, top_p=0.9, top_k=50, seed=7)
    alone = Asked(model, "What is it?", [image(0)], sampling=hot)
    Engine(batch=1, remembered=0).answer(alone.question)
    engine = Engine(batch=4, remembered=0)
    crowd = [Asked(model, "What is it?", [image(0)], sampling=s) for s in (Sampling(1.0), hot, Sampling())]
    for each in crowd:
        engine.submit(each.question)
    while engine.busy:
        engine.step()
    assert crowd[1].answer == alone.answer
    different = Asked(model, "What is it?", [image(0)], sampling=replace(hot, seed=8))
    engine.answer(different.question)
    assert different.answer != alone.answer


def test_logprobs_are_those_of_the_model(model):
    asked = Asked(model, "What is it?", [image(0)], sampling=Sampling(top_logprobs=3), max_tokens=5)
    Engine(batch=1, remembered=0).answer(asked.question)
    for token in asked.tokens:
        assert token.top[0] == (token.id, token.logprob)
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
        assert sum(np.exp(p) for _, p in token.top) <= 1 + 1e-6


def test_penalties_change_repetition(model):
    plain = Asked(model, "What is it?", max_tokens=40)
    varied = Asked(model, "What is it?", max_tokens=40, sampling=Sampling(frequency_penalty=2.0, presence_penalty=2.0))
    other = Asked(model, "What is it?", max_tokens=40, sampling=Sampling(repetition_penalty=5.0))
    for each in (plain, varied, other):
        Engine(batch=1, remembered=0).answer(each.question)

    def distinct(asked):
        return len({token.id for token in asked.tokens}) / len(asked.tokens)

    assert distinct(varied) > distinct(plain) or distinct(plain) == 1
    assert distinct(other) > distinct(plain) or distinct(plain) == 1


def test_stop_strings_end_and_are_left_out(model):
    whole = Asked(model, "What is it?", max_tokens=30)
    Engine(batch=1, remembered=0).answer(whole.question)
    stop = whole.answer[4:6]
    cut = Asked(model, "What is it?", max_tokens=30, stop=(stop,))
    Engine(batch=1, remembered=0).answer(cut.question)
    assert cut.answer == whole.answer[: whole.answer.index(stop)]
    assert cut.finish == "stop"
    assert len(cut.tokens) < len(whole.tokens)


def test_a_question_that_cannot_be_asked_is_refused_and_others_go_on(model):
    with pytest.raises(DataError, match="the model takes"):
        Asked(model, "word " * 300)
    with pytest.raises(DataError, match="stands in the question"):
        Asked(model, "<image>")


def test_a_window_of_attention_is_kept(tmp_path):
    """Gemma 2 looks back over a window in every other layer; answers longer than the window are those of generate."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    loaded = pico_loaded(tmp_path)
    config = Gemma2Config(
        vocab_size=loaded.vlm.llm.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    loaded.vlm.llm = Gemma2ForCausalLM(config).eval()
    model = Served("gemma", replace(loaded, template=TEMPLATES["micro"].to_dict()), "square")
    engine = Engine(batch=3, remembered=2**20)
    asked = [Asked(model, "word " * n + "?", max_tokens=20) for n in (1, 9, 4)]
    for each in asked:
        engine.submit(each.question)
    while engine.busy:
        engine.step()
    assert [each.answer for each in asked] == [reference(model, each) for each in asked]


def test_other_memories_are_refused():
    from transformers import MambaConfig

    class Llm:
        config = MambaConfig(num_hidden_layers=2)

    with pytest.raises(CheckpointError, match="mamba keeps more than keys and values"):
        rows.count_layers(Llm(), "there")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_logits_that_are_not_finite_are_an_error(wrong, temperature):
    logits = torch.zeros(50)
    logits[3 if wrong > 0 or wrong != wrong else slice(None)] = wrong
    with pytest.raises(LaunchError, match="not finite"):
        Sampler(Sampling(temperature=temperature, seed=0)).choose(logits)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6])
def test_a_tiny_temperature_chooses_the_best(temperature):
    logits = torch.linspace(-20, 20, 50)
    assert Sampler(Sampling(temperature=temperature, seed=0)).choose(logits).id == 49


@pytest.mark.parametrize("at_first", [True, False], ids=["first token", "later token"])
def test_a_question_whose_logits_are_not_finite_fails_alone(model, monkeypatch, at_first):
    asked = [Asked(model, "Is it a ring?", [image(1)], sampling=Sampling(temperature=0.8, seed=n)) for n in range(3)]
    expected = [Asked(model, "Is it a ring?", [image(1)], sampling=each.question.sampling) for each in asked]
    engine = Engine(batch=3, remembered=2**24)
    for each in expected:
        engine.answer(each.question)
    forward, passes = model.forward, []

    def spoiled(cache, **given):
        logits = forward(cache, **given)
        passes.append(len(logits))
        if len(passes) > 1 and len(logits) == 3 and not at_first:
            logits[1] = torch.nan
        if len(passes) == 1 and at_first:
            logits[:] = torch.nan
        return logits

    monkeypatch.setattr(model, "forward", spoiled)
    engine = Engine(batch=3, remembered=2**24)
    for each in asked:
        engine.submit(each.question)
        engine.admit()
    while engine.busy:
        engine.step()
    failed = 0 if at_first else 1
    assert [type(each.error) for each in asked] == [LaunchError if n == failed else type(None) for n in range(3)]
    assert "not finite" in str(asked[failed].error)
    assert asked[failed].finish is None
    for n in {0, 1, 2} - {failed}:
        assert asked[n].answer == expected[n].answer
    if at_first:
        assert asked[1].question.reused < len(asked[1].question.prompt.ids) - 1, "what has failed is not remembered"


def test_questions_that_do_not_fit_together_are_tried_alone_with_the_memory_back(model, monkeypatch):
    """What the failed pass has computed must be gone before the next one begins."""
    computed, held, tried = beginnings.computed, [], []

    def short_of_memory(begun, features):
        tried.append((len(begun), [each() for each in held]))
        if len(begun) > 1:
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("no memory")
        return computed(begun, features)

    engine = Engine(batch=8, remembered=0)
    monkeypatch.setattr(beginnings, "computed", short_of_memory)
    asked = [Asked(model, text) for text in ("What is it?", "Where is it?")]
    for each in asked:
        engine.submit(each.question)
    while engine.busy:
        engine.step()
    assert tried == [(2, []), (1, [None]), (1, [None])]
    assert [each.error for each in asked] == [None, None]
    assert all(each.finish for each in asked)
