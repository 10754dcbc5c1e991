"""Every key of a record and of a message is read, a note that means nothing for training, or refused by its name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data import formats
from vlmrun.data.formats import keys, llava, minicpm, openai, vqa
from vlmrun.data.formats.window import Decoder
from vlmrun.data.lint import Rules, lint
from vlmrun.data.sample import Rejected, Sample

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
RECORD = {"id": "r", "image": "a.png", "conversations": TALK}
CHAT = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]


def parse(record, **options):
    return llava.parse(record, ("f.json", 0), **options)


names = st.text(alphabet="abcdefghijklmnop_xyz", min_size=4, max_size=12).filter(
    lambda name: not name.startswith("_") and name not in (*keys._NOTES, *keys._ABOUT_IMAGE, *llava.KEYS)
)
said = st.one_of(st.text(min_size=1, max_size=5), st.integers(), st.booleans(), st.lists(st.integers(), min_size=1))


@given(name=names, value=said.filter(lambda value: value not in ("[]", "{}")))
def test_a_key_that_is_not_known_is_refused_by_its_name_wherever_it_stands(name, value):
    found = parse({name: value} | RECORD)
    assert isinstance(found, Rejected)
    assert f"`{name}`" in found.what
    assert f"ignore_keys=[{name}]" in found.fix
    inside = [TALK[0], TALK[1] | {name: value}]
    found = parse(RECORD | {"conversations": inside})
    assert name in ("loss", "weight") or (isinstance(found, Rejected) and f"`{name}`" in found.what)
    asked = {"question_id": 1, "text": "What?", name: value}
    if name not in (*vqa._KEYS, *vqa._NOTES):
        assert f"`{name}`" in vqa._parse(asked, ("f", 0), ()).what
    assert f"`{name}`" in minicpm.parse({"id": "a", "conversations": CHAT, name: value}, ("f", 0)).what


@given(name=names, value=said)
def test_a_key_may_be_ignored(name, value):
    assert parse({name: value} | RECORD, ignore_keys=[name]) == parse(RECORD)
    assert parse({name: value} | RECORD, ignore_keys=[name[:2] + "*"]) == parse(RECORD)
    assert parse({name: value} | RECORD, ignore_keys=["*"]) == parse(RECORD)


@pytest.mark.parametrize("nothing", [None, "", [], {}, "[]"])
def test_a_key_that_says_nothing_is_no_problem(nothing):
    more = {"images": nothing, "system": None, "tools": nothing, "whatever": nothing}
    assert parse(RECORD | more) == parse(RECORD)


@pytest.mark.parametrize(
    "notes",
    [
        {"model": ""},
        {"model": "gpt-4", "source": "x", "data_source": "y"},
        {"url": "https://example.org", "caption": "a cat", "blip_caption": "cat"},
        {"width": 3, "height": 4, "type": "detail", "category": "c", "question_id": 3, "_own": {"a": 1}},
    ],
)
def test_notes_of_published_data_sets_are_no_problem(notes):
    assert parse(RECORD | notes) == parse(RECORD)


def test_a_note_about_an_image_says_something_where_no_image_is_named():
    plain = {"id": "r", "conversations": [{"from": "human", "value": "What?"}, TALK[1]]}
    assert "`image_id`" in parse(plain | {"image_id": 7}).what
    assert isinstance(parse(plain | {"model": "m"}), Sample)


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("images", "format=sharegpt"),
        ("image_path", "under `image`"),
        ("video", "leave such records out"),
        ("tools", "leave such records out"),
        ("system_prompt", "under `system`"),
        ("loss_mask", "loss: false"),
        ("imag", "did you mean `image`?"),
    ],
)
def test_what_other_programs_write_is_named_with_what_to_write(key, fix):
    assert fix in parse(RECORD | {key: "x"}).fix


def test_all_keys_of_a_record_are_named_at_once():
    found = parse(RECORD | {"video": "a.mp4", "audio": "a.wav"})
    assert "`video`" in found.what
    assert "`audio`" in found.what


@pytest.mark.parametrize("key", ["loss", "weight"])
@pytest.mark.parametrize("value", [False, 0, 0.0])
def test_an_answer_is_kept_out_of_training(key, value):
    talk = [*TALK[:1], TALK[1] | {key: value}, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    assert [turn.supervised for turn in parse(RECORD | {"conversations": talk}).turns] == [True, False, True, True]


@pytest.mark.parametrize(
    ("number", "more", "told"),
    [
        (1, {"loss": "no"}, "`loss` of message 1 is 'no'"),
        (1, {"weight": 0.5}, "`weight` of message 1 is 0.5"),
        (1, {"loss": True, "weight": 0}, "contradict each other"),
        (0, {"loss": True}, "message 0 is a question with `loss: True`"),
        (1, {"loss": False}, "no answer is trained"),
    ],
)
def test_a_mark_of_training_that_cannot_be_meant_is_refused(number, more, told):
    talk = [message | (more if place == number else {}) for place, message in enumerate(TALK)]
    assert told in parse(RECORD | {"conversations": talk}).what


def test_a_system_text_stands_under_its_key_or_in_the_first_message():
    first = {"from": "system", "value": "Be brief."}
    by_key, by_turn = parse(RECORD | {"system": "Be brief."}), parse(RECORD | {"conversations": [first, *TALK]})
    assert by_key == by_turn
    assert by_key.system == "Be brief."
    assert len(by_key.turns) == 2
    assert parse(RECORD | {"system": "Be brief.", "conversations": [first, *TALK]}) == by_key
    assert "differ" in parse(RECORD | {"system": "Be long.", "conversations": [first, *TALK]}).what
    assert "message 2 is from 'system'" in parse(RECORD | {"conversations": [*TALK, first]}).what
    assert "`system` is a list" in parse(RECORD | {"system": ["Be brief."]}).what
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    assert minicpm.parse({"id": "a", "conversations": chat}, ("f", 0)).system == "Be brief."


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("place", ["record", "message"])
def test_a_key_that_is_written_twice_is_an_error(tmp_path, ending, place):
    text = json.dumps(RECORD)
    double = {"record": text[:-1] + ', "image": "b.png"}', "message": text.replace('"gpt", ', '"gpt", "value": "x", ')}
    lines = [text, double[place], text]
    path = tmp_path / f"f.{ending}"
    path.write_text("[" + ",".join(lines) + "]" if ending == "json" else "\n".join(lines))
    found = list(formats.reader("llava")(path))
    assert [isinstance(each, Sample) for each in found] == [True, False, True]
    assert "written twice" in found[1].what
    assert found[1].id == "r"
    assert [each.kind for each in lint(path, Rules(marks=())) if each.index == 1] == ["keys"]


def test_lint_classes_keys_and_takes_those_to_ignore(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([RECORD | {"colour": "red"}]))
    assert [(each.kind, "`colour`" in each.what) for each in lint(path, Rules(marks=()))] == [("keys", True)]
    assert list(lint(path, Rules(marks=(), ignore_keys=["colour"]))) == []


def test_under_compat_records_other_keys_are_dropped_as_upstream_drops_them():
    found = parse(RECORD | {"colour": "red", "system": "Be brief."}, as_it_is=True)
    assert isinstance(found, Sample)
    assert found.system is None


@pytest.mark.parametrize("value", [True, 1, 0.5, "yes"])
def test_a_system_text_is_not_trained(value):
    talk = [{"from": "system", "value": "Be brief.", "loss": value}, *TALK]
    as_roles = {"human": "user", "gpt": "assistant", "system": "system"}
    roles = [{"role": as_roles[m["from"]], "content": m["value"]} for m in talk]
    roles[0]["weight"] = value
    found = [
        parse(RECORD | {"conversations": talk}),
        openai.parse({"id": "r", "messages": roles}, ("f.json", 0)),
        minicpm.parse({"id": "r", "conversations": roles}, ("f.json", 0)),
    ]
    told = "message 0 is a system text" if value in (True, 1) else "of message 0 is"
    assert [told in each.what for each in found] == [True] * 3
    talk[0]["loss"] = False
    assert parse(RECORD | {"conversations": talk}).system == "Be brief."


def test_one_key_written_very_often_is_found_in_time():
    """Counting each key by itself would take hours."""
    decoder = Decoder()
    decoder.whole("{" + '"a": 0, ' + ", ".join(f'"{n}": 0' for n in range(100_000)) + ', "a": 1}')
    assert decoder.repeated == ["a"]
