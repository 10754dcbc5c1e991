import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmrun.data import formats
from vlmrun.data.formats import base, llava, vqa
from vlmrun.data.sample import Question, Rejected, Sample, Turn, move_image_tags
from vlmrun.errors import ConfigError, DataError


def conversation(*texts):
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]


def parse(**record):
    return llava.parse(record, ("f.json", 7))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(values, max_size=5), indent=st.none() | st.integers(0, 2), ascii_only=st.booleans())
def test_a_list_is_read_as_json_reads_it(tmp_path, content, indent, ascii_only):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), "utf-8")
    assert list(base.records(path)) == list(enumerate(content))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(values, min_size=1, max_size=4), cut=st.integers(1, 200), junk=st.sampled_from(["", "}", ",", "x"])
)
def test_a_damaged_list_is_an_error_wherever_it_breaks(tmp_path, content, cut, junk):
    path = tmp_path / "f.json"
    text = json.dumps(content)
    path.write_text(text[: len(text) - 1 - cut % len(text)] + junk, "utf-8")
    with pytest.raises(DataError):
        list(base.records(path))


def test_malformed_list_names_line_column_and_record(tmp_path):
    path = tmp_path / "f.json"
    path.write_text('[\n {"id": 1},\n {"id": 2,, }\n]', "utf-8")
    with pytest.raises(DataError, match="line 3, column 11, record 1") as error:
        list(llava.read(path))
    assert error.value.problems[0].where == f"{path}:3"


@pytest.mark.parametrize("text", ["", "   ", "{}", '"x"', "[1, 2] 3", "[1 2]", "[1,]", "[" * 100_000])
def test_other_damaged_lists(tmp_path, text):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(DataError):
        list(base.records(path))


def test_a_bad_line_does_not_end_a_jsonl_file(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n{"a": "\xff"}\n{"a": 2}\n')
    found = list(base.records(path))
    assert [index for index, _ in found] == [0, 1, 2, 3]
    assert found[0][1] == {"a": 1}
    assert found[3][1] == {"a": 2}
    assert "line 3, column" in found[1][1].what
    assert "line 4 is not UTF-8" in found[2][1].what


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(DataError, match=r"did you mean 'captions\.json'"):
        list(llava.read(tmp_path / "caption.json"))
    with pytest.raises(DataError, match="folder does not exist"):
        list(llava.read(tmp_path / "nowhere" / "caption.json"))
    with pytest.raises(DataError, match="a folder stands where"):
        list(llava.read(tmp_path))


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "f.json").write_bytes(b'["\xff\xfe"]')
    with pytest.raises(DataError, match="not UTF-8"):
        list(llava.read(tmp_path / "f.json"))


def test_a_good_record():
    found = parse(id=5, image="a.png", conversations=conversation("What is\n<image>", "A cat."), model="x")
    turns = (Turn("user", "<image>\nWhat is"), Turn("assistant", "A cat."))
    assert found == Sample("5", ("a.png",), turns, ("f.json", 7))
    assert found.where == "f.json[7] (id '5')"


def test_text_only_and_several_images():
    assert parse(conversations=conversation("a", "b")).images == ()
    found = parse(image=["a", "b"], conversations=conversation("<image> or <image>?", "b"))
    assert found.turns[0].text == "<image> or <image>?"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("no tag ", "no tag "),
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("What?\n<image>", "<image>\nWhat?"),
        ("Look at <image> now", "<image>\nLook at  now"),
        ("<image>", "<image>"),
    ],
)
def test_tags_move_to_the_front(before, after):
    assert move_image_tags(before) == after


GOOD = conversation("<image>\nWhat?", "A cat.")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"conversations": GOOD}, "1 <image> tags in the text, but 0 images"),
        ({"image": "a", "conversations": conversation("x", "y")}, "0 <image> tags in the text, but 1 images"),
        ({"image": ["a", "b"], "conversations": GOOD}, "1 <image> tags in the text, but 2 images"),
        ({"image": 5, "conversations": GOOD}, "neither a file name"),
        ({"image": "", "conversations": GOOD}, "neither a file name"),
        ({"image": "a", "conversation": GOOD}, "`conversations` is missing"),
        ({"conversations": []}, "not a list of messages"),
        ({"conversations": "hi"}, "not a list of messages"),
        ({"conversations": ["hi"]}, "message 0 has no text"),
        ({"conversations": [{"from": "human", "value": None}]}, "message 0 has no text"),
        ({"conversations": [{"from": "humna", "value": "x"}]}, "message 0 is from 'humna'"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "message 0 is from"),
        ({"conversations": conversation("a", "b")[::-1]}, "roles out of order: message 0 is the assistant's"),
        ({"conversations": conversation("a", "b") + conversation("c", "d")[1:]}, "roles out of order: message 2"),
        ({"conversations": conversation("a", " \n")}, "empty answer in message 1"),
        ({"conversations": conversation("", "b")}, "empty question in message 0"),
        ({"conversations": conversation("a", "b", "c")}, "last question has no answer"),
    ],
)
def test_bad_records_say_what_is_wrong(record, what):
    found = parse(id="r", **record)
    assert isinstance(found, Rejected)
    assert what in found.what
    assert found.fix
    assert found.problem.where == "f.json[7] (id 'r')"


@pytest.mark.parametrize("record", [None, 3, "x", ["a"]])
def test_a_record_that_is_no_object(record):
    assert "not an object" in llava.parse(record, ("f.json", 0)).what


def vqa_lines(tmp_path, *records):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return list(vqa.read(path))


def test_vqa_questions(tmp_path):
    found, plain = vqa_lines(
        tmp_path,
        {"question_id": 1, "image": "a.png", "text": "What?", "answer": "red", "category": "c", "split": "unseen"},
        {"question_id": 2, "text": "2 + 2?", "answer": 4},
    )
    assert isinstance(found, Question)
    assert (found.id, found.images, found.answer, found.category, found.split) == (
        "1",
        ("a.png",),
        "red",
        "c",
        "unseen",
    )
    assert found.turns == (Turn("user", "<image>\nWhat?"),)
    assert (plain.images, plain.answer, plain.category, plain.split) == ((), "4", "all", "test")


@pytest.mark.parametrize("text", ["What is it?\n<image>", "Is <image> red?", "<image>\nWhat?", "<image> What? "])
def test_a_text_is_the_same_for_training_and_evaluation(tmp_path, text):
    (asked,) = vqa_lines(tmp_path, {"question_id": 1, "image": "a.png", "text": text, "answer": "red"})
    assert asked.turns[0] == parse(image="a.png", conversations=conversation(text, "red")).turns[0]
    assert asked.turns[0].text.startswith("<image>\n")


def test_bad_vqa_questions(tmp_path):
    good = {"question_id": 1, "text": "What?", "answer": "red"}
    found = vqa_lines(
        tmp_path,
        good,
        good,
        {**good, "question_id": 2, "answer": ""},
        {**good, "question_id": 3, "image": ["a"]},
        {**good, "question_id": 4, "text": "<image> What?"},
        [1],
    )
    assert isinstance(found[0], Question)
    whats = [bad.what for bad in found[1:]]
    for what, expected in zip(
        whats, ["used twice", "'answer' is missing", "not a file name", "1 <image> tags", "not an object"], strict=True
    ):
        assert expected in what


def test_formats_by_name(monkeypatch, tmp_path):
    (tmp_path / "f.json").write_text(json.dumps([{"id": "a", "conversations": conversation("What?", "That.")}]))
    assert list(formats.reader("llava")(tmp_path / "f.json")) == list(llava.read(tmp_path / "f.json"))
    with pytest.raises(ConfigError, match="did you mean 'llava'"):
        formats.reader("lava")
    with pytest.raises(ConfigError, match=r"'os\.path' is not allowed"):
        formats.reader("os.path")
    with pytest.raises(ConfigError, match="no module"):
        formats.reader("vlmrun.data.formats.lava")
    with pytest.raises(ConfigError, match="has no function `read`"):
        formats.reader("vlmrun.data.sample")
    (tmp_path / "my_format_c.py").write_text("def read(path):\n    return iter(())\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VLMRUN_ALLOW", "my_format_c")
    with pytest.raises(ConfigError, match="no data format 'my_format_c'"):
        formats.reader("my_format_c")


PLUGIN = """
from vlmrun.data.sample import Sample, Turn


def read(path):
    for number, tags in enumerate((1, 2, 0)):
        question = Turn("user", "<image>" * tags + "What?")
        yield Sample(str(number), ("a.png",), (question, Turn("assistant", "red")), (str(path), number))
    yield Sample("3", (), (Turn("user", "What is <image>?"), Turn("assistant", "a word")), (str(path), 3))
"""


def test_a_plugins_record_has_a_tag_for_every_image(tmp_path, monkeypatch):
    (tmp_path / "tagged_formats").mkdir()
    (tmp_path / "tagged_formats" / "odd.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VLMRUN_ALLOW", "tagged_formats")
    found = list(formats.reader("tagged_formats.odd")(tmp_path / "data"))
    assert [isinstance(each, Rejected) for each in found] == [False, True, True, False]
    assert found[1].what == "2 <image> tags in the text for 1 images"
    assert found[2].problem.where == f"{tmp_path / 'data'}[2] (id '2')"


@given(
    records=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=8,
    ),
    n_bytes=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    escaped=st.booleans(),
)
def test_a_list_read_through_a_window_of_any_size_is_the_list(records, n_bytes, indent, escaped):
    text = json.dumps(records, indent=indent, ensure_ascii=escaped)
    window = base.Window(io.BytesIO(text.encode()), Path("f"), n_bytes)
    assert window.peek() == "["
    assert window.value(0) == records


@given(n_bytes=st.integers(1, 60), place=st.integers(0, 4))
def test_damage_is_told_at_the_same_place_however_the_file_is_cut(n_bytes, place):
    lines = ["[", '{"a": 1},', '{"b": "x\\u00e9"},', '{"c": [1, 2]},', '{"d": 4}', "]"]
    lines[place] = lines[place].replace("[", "(").replace(":", ";")
    text = "\n".join(lines)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    window = base.Window(io.BytesIO(text.encode()), Path("f.json"), n_bytes)
    with pytest.raises(DataError) as found:
        window.value(0)
    assert f"line {expected.value.lineno}, column {expected.value.colno}," in str(found.value)


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(n):
        path = tmp_path / f"{n}.json"
        record = '{"id": "x", "text": "' + "a" * 1000 + '"}'
        path.write_text("[" + ",\n".join([record] * n) + "]")
        tracemalloc.start()
        assert sum(1 for _ in base.records(path)) == n
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory

    peak(10)
    # Windows of 1 MiB, twice; a list of 20 MB in memory would be ten times that.
    assert peak(20_000) < 6e6
