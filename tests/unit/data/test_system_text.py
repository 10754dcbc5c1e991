"""A record's own system text and its excluded answers, from the reader to token ids, under every template."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data import index
from vlmrun.data.compat import settings
from vlmrun.data.encode import encode
from vlmrun.data.fits import misfit
from vlmrun.data.formats import llava
from vlmrun.data.lint import Rules, lint
from vlmrun.data.prompts import Prompts
from vlmrun.data.records import open_datasets
from vlmrun.data.sample import Sample, Turn
from vlmrun.data.system import PLACES, missing, placed
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import DataError
from vlmrun.ids import IGNORE

NO_PLACE = {"plain", "mistral_instruct", "pai_mistral", "minicpm_v2"}
TURNS = (Turn("user", "What?"), Turn("assistant", "That."))
words = st.text("abc .\n", min_size=1, max_size=12).filter(str.strip)


def sample(system=None, turns=TURNS):
    return Sample("r", (), turns, ("f.json", 0), system=system)


def text(template, of):
    return "".join(piece.text for piece in placed(template, of).render(of.turns))


def test_every_template_has_a_place_or_refuses_by_name():
    assert set(TEMPLATES) - set(PLACES) == NO_PLACE
    for name in NO_PLACE:
        problem = missing(TEMPLATES[name], sample("Be brief."))
        assert problem is not None
        assert repr(name) in problem.what
        assert "`system`" in problem.what
        assert misfit(sample("Be brief."), TEMPLATES[name]) is not None
        assert missing(TEMPLATES[name], sample()) is None


@pytest.mark.parametrize("name", sorted(PLACES))
@given(system=words)
def test_the_text_stands_before_the_first_question_and_nothing_else_changes(name, system):
    template = TEMPLATES[name]
    with_text, without = text(template, sample(system)), text(template, sample())
    own = system.strip() if template.trims else system
    assert own in with_text[: with_text.index("What?")]
    assert with_text.endswith(without[without.index("What?") :])
    marked = template.with_markers("<a>", "<b>")
    assert placed(marked, sample(system)).image_start == marked.image_start


@pytest.mark.parametrize("name", sorted(set(PLACES) - {"micro", "minicpm_v25"}))
def test_the_built_in_text_put_in_its_own_place_is_the_template(name):
    template, place = TEMPLATES[name], PLACES[name]
    held = getattr(template, place.field)
    built_in = held[len(place.before) : len(held) - len(place.after)]
    assert len(built_in) > 10
    assert placed(template, sample(built_in)) == template


def test_a_record_with_both_goes_through_the_index(tmp_path):
    turns = (*TURNS, Turn("user", "Sure?"), Turn("assistant", "Yes.", supervised=False))
    samples = [sample(), sample("Be brief."), sample("a\n", turns), sample(None, turns)]
    made = index.write(tmp_path, [("d", "f.json", samples)])
    assert list(made) == samples
    assert made.words[1] < made.words[0] < 0


@pytest.mark.parametrize("name", ["micro", "vicuna_v1", "minicpm_v25", "llama_2"])
@given(excluded=st.lists(st.booleans(), min_size=1, max_size=4).filter(lambda each: not all(each)))
def test_exactly_the_answers_that_are_not_excluded_are_supervised(name, excluded):
    turns = []
    for number, out in enumerate(excluded):
        turns += [Turn("user", f"q{number}"), Turn("assistant", f"a{number}", supervised=not out)]
    pieces = TEMPLATES[name].render(turns)
    learned = "".join(piece.text + piece.then for piece in pieces if piece.supervised)
    assert [f"a{number}" in learned for number in range(len(excluded))] == [not out for out in excluded]
    assert all(not piece.then for piece in pieces if not piece.supervised)


def test_an_excluded_answer_has_no_label(encoder):
    turns = [Turn("user", "a"), Turn("assistant", "bb"), Turn("user", "c"), Turn("assistant", "dd")]

    def labels(*excluded):
        given = tuple(Turn(turn.role, turn.text, number not in excluded) for number, turn in enumerate(turns))
        return encode(sample(None, given), TEMPLATES["micro"], encoder.tokenizer, image_tokens=[], max_length=99).labels

    both, first, second = labels(), labels(3), labels(1)
    assert [max(a, b) for a, b in zip(first, second, strict=True)] == both
    assert 0 < sum(label != IGNORE for label in first) < sum(label != IGNORE for label in both)
    with pytest.raises(DataError, match="no token of an answer"):
        labels(1, 3)


@pytest.mark.parametrize("project", ["llava", "minicpm"])
def test_upstreams_labels_refuse_an_excluded_answer(project):
    turns = (*TURNS, Turn("user", "Sure?"), Turn("assistant", "Yes.", supervised=False))
    assert f"compat.labels={project}" in settings.excluded(sample(None, turns), project).what
    assert settings.excluded(sample(), project) is None
    assert settings.excluded(sample(None, turns), None) is None


def test_training_and_lint_refuse_a_system_text_that_the_template_cannot_show(tmp_path, write_data, encoder):
    def change(records):
        records[0]["system"] = "Be brief."

    config = write_data(change=change)
    folder = tmp_path / "index"
    found = open_datasets({"d": config}, ["d"], encoder=encoder, skipped=None, folder=folder)
    assert found.sample(0).system == "Be brief."
    shown = encoder.tokenizer.decode(found[0].encoded.input_ids)
    assert "Be brief." in shown
    assert "Be brief." not in encoder.tokenizer.decode(found[3].encoded.input_ids)
    other = replace(encoder, template=TEMPLATES["mistral_instruct"])
    with pytest.raises(DataError, match="'mistral_instruct' has no place for the record's `system` text"):
        open_datasets({"d": config}, ["d"], encoder=other, skipped=None, folder=tmp_path / "other")
    rules = Rules(marks=(), template=TEMPLATES["mistral_instruct"])
    path = tmp_path / "data" / "d.json"
    assert [(each.kind, each.index) for each in lint(path, rules)] == [("template", 0)]
    prompt = Prompts(encoder).item(TURNS[:1], found[0].pixels, "x", sample=sample("Be brief."))
    assert "Be brief." in encoder.tokenizer.decode(prompt.encoded.input_ids)


def test_a_record_from_a_file_stands_in_the_template():
    record = {"system": "Be brief.", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    found = llava.parse(record, ("f", 0))
    assert text(TEMPLATES["vicuna_v1"], found).startswith("Be brief. USER: a ASSISTANT: b")
