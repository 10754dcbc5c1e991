"""Formats that are often met: OpenAI's and ShareGPT's are read, others are named with what converts them."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrun.data import formats
from vlmrun.data.formats import llava, openai, sharegpt
from vlmrun.data.prepare.convert import convert
from vlmrun.data.sample import Rejected, Sample
from vlmrun.errors import DataError


def chat(ask, answer="red", **more):
    return {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]} | more


def read_openai(record, **options):
    return openai.parse(record, ("f.json", 0), **options)


def image(name):
    return {"type": "image_url", "image_url": {"url": name}}


TEXT = {"type": "text", "text": "Which colour?"}


@pytest.mark.parametrize(
    "record",
    [
        chat([image("a.png"), TEXT]),
        chat([{"type": "image", "image": "a.png"}, TEXT]),
        chat([{"type": "image_url", "image_url": "a.png"}, TEXT]),
        chat([{"type": "image"}, TEXT], images=["a.png"]),
        chat("<image>\nWhich colour?", images=["a.png"]),
        chat("Which colour?", images=["a.png"]),
        chat("Which colour?", image="a.png"),
    ],
    ids=str,
)
def test_every_way_to_name_an_image_of_a_chat_is_read(record):
    found = read_openai(record)
    assert isinstance(found, Sample)
    assert (found.images, found.turns[0].text) == (("a.png",), "<image>\nWhich colour?")


def test_a_chat_has_a_system_text_excluded_answers_and_images_in_their_places():
    said = [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *chat("a", "b")["messages"]]
    said[-1]["weight"] = 0
    said += chat([{"type": "text", "text": "left"}, image("a.png"), {"type": "text", "text": "right"}, image("b.png")])[
        "messages"
    ]
    found = read_openai({"messages": said})
    assert (found.system, found.images) == ("Be brief.", ("a.png", "b.png"))
    assert [turn.supervised for turn in found.turns] == [True, False, True, True]
    assert found.turns[2].text == "left\n<image>\nright\n<image>"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (chat([image("https://example.org/a.png")]), "is a URL"),
        (chat([image("data:image/png;base64,AAAA")]), "in base64"),
        (chat([{"type": "input_audio", "input_audio": {}}]), "part of type 'input_audio'"),
        (chat([{"type": "video", "video": "a.mp4"}]), "part of type 'video'"),
        (chat([image("a.png")], images=["a.png"]), "in the messages and in `images`"),
        (chat("<image> <image>", images=["a.png"]), "2 <image> tags in the text, but 1 images"),
        (chat("a", tools=[{"type": "function"}]), "`tools`"),
        (chat(None), "message 0 has no text"),
        ({"messages": [*chat("a")["messages"], {"role": "tool", "content": "x"}]}, "message 2 is from 'tool'"),
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, "`name` of message 0"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "`tool_calls` of message 0"),
        ({"messages": []}, "not a list of messages"),
        ({"message": []}, "`messages` is missing"),
        ([], "not an object"),
    ],
)
def test_what_a_chat_says_and_cannot_be_trained_is_refused(record, told):
    found = read_openai(record)
    assert isinstance(found, Rejected)
    assert told in found.what


def share(ask, **more):
    return {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": "red"}]} | more


def test_sharegpt_has_images_under_images_and_keeps_their_places():
    ask = "left <image> or right <image>?"
    found = sharegpt.parse(share(ask, images=["a.png", "b.png"], system="Be brief."), ("f", 0))
    assert (found.images, found.turns[0].text, found.system) == (("a.png", "b.png"), ask, "Be brief.")
    assert sharegpt.parse(share("What?", images=["a.png"]), ("f", 0)).turns[0].text == "<image>\nWhat?"
    assert sharegpt.parse(share("What? <image>", images=["a.png"]), ("f", 0)).turns[0].text == "What? <image>"
    assert "name different images" in sharegpt.parse(share("What?", images=["a"], image="b"), ("f", 0)).what
    assert "`video`" in sharegpt.parse(share("What?", images=["a"], video="b"), ("f", 0)).what


def test_both_formats_say_in_how_many_records_they_put_a_tag(tmp_path, caplog):
    caplog.set_level("INFO", "vlmrun")
    (tmp_path / "f.json").write_text(json.dumps([chat("a", images=["a.png"]), chat("<image>b", images=["a.png"])]))
    assert len(list(openai.read(tmp_path / "f.json"))) == 2
    assert "was put before the first question of 1 records" in caplog.text


@given(asks=st.lists(st.text("ab ?", min_size=1).filter(str.strip), min_size=1, max_size=3), n_images=st.integers(0, 2))
def test_a_chat_converted_to_llava_is_the_same_sample(tmp_path_factory, asks, n_images):
    folder = tmp_path_factory.mktemp("f")
    names = [f"{number}.png" for number in range(n_images)]
    asks[0] = "".join("<image>\n" for _ in names) + asks[0].strip()
    said = [message for ask in asks for message in chat(ask)["messages"]]
    said[-1]["weight"] = 1
    record = {"id": "r", "messages": [{"role": "system", "content": "Be brief."}, *said], "images": names}
    (folder / "f.jsonl").write_text(json.dumps(record))
    assert convert(folder / "f.jsonl", folder / "out.json", read_as="openai", write_as="llava") == 1
    (was,), (found,) = list(openai.read(folder / "f.jsonl")), list(llava.read(folder / "out.json"))
    assert (was.turns, was.system, was.images) == (found.turns, found.system, found.images)


@pytest.mark.parametrize(
    ("record", "told", "fix"),
    [
        (chat("a"), "OpenAI's `messages`", "format=openai"),
        ({"instruction": "a", "output": "b"}, "an Alpaca record", "conversations"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a pair of preferences", "conversations"),
        ({"question": "a", "answer": "b"}, "a question and its answer", "format=vqa"),
        ({"image": "a.png", "caption": "b"}, "an image and its caption", "conversations"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "it has `role` and `content`", "format=minicpm"),
    ],
)
def test_records_of_other_formats_are_named_as_what_they_are(record, told, fix):
    found = llava.parse(record, ("f.json", 0))
    assert told in found.what
    assert fix in found.fix


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"ARROW1\x00\x00", "an Arrow file"),
        (gzip.compress(b"[]", mtime=0), "compressed with gzip"),
        (b"PK\x03\x04aaaa", "a zip archive"),
        (b"BZh91AY", "compressed with bzip2"),
        (b"\xfd7zXZ\x00", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x00", "compressed with zstd"),
        (b"SQLite format 3\x00", "an SQLite database"),
        ('[{"id": 1}]'.encode("utf-16"), "UTF-16"),
        (b"a" * 257 + b"ustar", "a tar archive"),
    ],
)
@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
def test_files_that_are_no_json_are_named_as_what_they_are(tmp_path, content, told, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        list(formats.reader("llava")(tmp_path / name))
    assert error.value.problems[0].fix


def test_tables_and_objects_around_records_are_named(tmp_path):
    (tmp_path / "f.csv").write_text("image,caption\na.png,red\n")
    with pytest.raises(DataError, match="a table with the columns image, caption"):
        list(llava.read(tmp_path / "f.csv"))
    (tmp_path / "f.json").write_text(json.dumps({"data": [share("a")]}))
    with pytest.raises(DataError, match=r"jq '\.data'"):
        list(llava.read(tmp_path / "f.json"))
    (tmp_path / "f.json").write_text(json.dumps(share("a")) + "\n" + json.dumps(share("b")))
    with pytest.raises(DataError, match=r"name the file f\.jsonl"):
        list(llava.read(tmp_path / "f.json"))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_in_a_jsonl_file_is_read_as_the_list_it_is(tmp_path, indent):
    (tmp_path / "f.jsonl").write_text("\ufeff \n" + json.dumps([share("a"), share("b")], indent=indent))
    assert [each.turns[0].text for each in llava.read(tmp_path / "f.jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("https://example.org/a.png", "is a URL"),
        ("s3://bucket/a.png", "is a URL"),
        ("data:image/png;base64,iVBORw0KGgo=", "the image itself in base64"),
        ("iVBORw0KGgo" * 4000, "the image itself in base64"),
        ({"bytes": None, "path": "a.png"}, "an image of the library `datasets`"),
        ({"<image_00>": "a.png"}, "neither a file name nor a list of them"),
    ],
)
def test_an_image_that_is_no_file_name_is_named_as_what_it_is(name, told):
    found = llava.parse(share("<image>\nWhat?", image=name), ("f", 0))
    assert told in found.what
    assert len(found.what) < 200


@pytest.mark.parametrize("name", ["f.csv", "f.tsv", "F.CSV", "f.json"])
@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_is_no_list_whatever_its_ending(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match="not a JSON list of records"):
        list(llava.read(path))


def test_a_table_is_named_by_its_columns(tmp_path):
    path = tmp_path / "F.CSV"
    path.write_text("id,text\n1,a\n")
    with pytest.raises(DataError, match="the columns id, text, not JSON"):
        list(llava.read(path))
