"""Overrides as a shell hands them over: any text as a value, and no word that ends as anything but a problem."""

import shlex

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmrun.config.compose import compose
from vlmrun.config.overrides import parse, problem, quoted, readable

KEY = "data.shapes_instruct.annotations"


def value(word: str) -> object:
    found = parse(word).value()
    return getattr(found, "text", found)


@pytest.mark.parametrize(
    "path",
    [
        "/runs/lr=0.001/epoch=9-step=87.ckpt",
        "자료/학습.json",
        "a folder/(1)/x.json",
        "a#b!c;d&e<f>g^h`i~j.json",
        "it's/x.json",
        'say "x"/y.json',
        "line\nbreak.json",
        "a\\b=c\\",
        "{1}/[2]/x=y.json".removeprefix("{1}/"),
        "é/x.json",
    ],
)
def test_a_path_is_taken_as_it_is_typed(path):
    (word,) = readable([f"{KEY}={path}"])
    if path.startswith("["):  # a list begins so: refused, with the words that work
        assert shlex.split(problem(word).fix.split("as one text: ")[1].split("; as")[0])[0] == f"{KEY}={quoted(path)}"
    else:
        assert problem(word) is None
        assert value(word) == path


@pytest.mark.parametrize(
    "text", ["x=1", "x=[a,b]", "x={a: 1}", "x=${y}", "x='a b'", "+x=null", "x=a,b", "x=range(1,3)"]
)
def test_what_the_grammar_reads_is_left_alone(text):
    assert readable([text]) == [text]


@pytest.mark.parametrize("text", ["x=[a,b", "x={a", "x=choise(1,=)", "x='a", "x=가,나", "~", "=", "가=1"])
def test_what_may_have_been_meant_in_another_way_is_not_taken_as_text(text):
    assert readable([text]) == [text]
    assert problem(text).fix


@given(st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text and "$" not in text))
@example("\\")
@example('\\"')
@example('\'"\\\\"')
@settings(max_examples=300, deadline=None)
def test_quotes_of_the_fix_give_back_the_text(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert value(f"{KEY}={quoted(text)}") == text


def test_a_name_that_is_not_utf_8_is_refused():
    assert "not UTF-8" in problem(f"{KEY}=\udcff.json").what


ODD = ("~stage", "~data", "~hydra", "~", "=", "+=", "@=1", "stage@x=y", "seed=${seed}", "+x@y=1", "a", "+",
       "stage=null", "+recipe={a:1}", "model=[a]", "data=[a,a]", "seed=" + "9" * 5000, "a=" + "[" * 2000,
       "model=" + "x" * 5000)  # fmt: skip
KEYS = ("stage", "model", "model/llm", "model.llm.tokens", "stage.lora", "seed", "hardware.env")
VALUES = ("", "null", "1", "[1]", "{a: 1}", "{pad: [1]}", "{}", "[]", "a,b", "${x}", "true", "é")
words = st.one_of(
    st.sampled_from(ODD),
    st.text("~+=@.:/[]{}()'\"$,\\ ax1é", max_size=12),
    st.builds("{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from(VALUES)),
)


@given(words)
@settings(max_examples=20, deadline=None)
def test_every_word_composes_or_is_a_problem_with_a_place(word):
    composed = compose(["+recipe=smoke", *readable([word])])
    assert all(found.what and found.where for found in composed.problems)
