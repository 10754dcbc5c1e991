import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrun.cli import data
from vlmrun.data.formats import llava, minicpm
from vlmrun.data.prepare import convert
from vlmrun.data.sample import IMAGE_TAG, Rejected, Sample, Turn
from vlmrun.errors import DataError

SOURCE = ("file.json", 0)


def _record(*contents, **keys):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return {"id": "r"} | keys | {"conversations": messages}


def _texts(record):
    found = minicpm.parse(record, SOURCE)
    assert isinstance(found, Sample), found
    return found.images, [turn.text for turn in found.turns]


def test_one_picture_stands_where_its_tag_is():
    assert _texts(_record("See <image> here", "yes", image="a.png")) == (("a.png",), ["See <image> here", "yes"])


def test_a_missing_tag_is_put_first_and_counted(tmp_path, caplog):
    path = tmp_path / "d.json"
    records = [_record("What?", "a", image="a.png") | {"id": str(n)} for n in range(2)]
    path.write_text(json.dumps([*records, _record("<image> What?", "a", image="a.png"), _record("Hi", "a", id="t")]))
    with caplog.at_level(logging.INFO, "vlmrun"):
        found = list(minicpm.read(path))
    assert [sample.turns[0].text for sample in found[:2]] == ["<image>\nWhat?"] * 2
    assert "<image> was put before the first question of 2 records" in caplog.text
    assert found[3].images == ()


def test_several_pictures_come_in_the_order_of_the_text():
    """Upstream takes them in the order of the keys, and so exchanges these two."""
    images = {"<image_00>": "a.png", "<image_01>": "b.png"}
    names, texts = _texts(_record("<image_01>Is it?", "no", "And <image_00>", "yes", image=images))
    assert names == ("b.png", "a.png")
    assert texts == ["\n<image>\nIs it?", "no", "And \n<image>\n", "yes"]


BAD = {
    "not an object": ([], "not an object"),
    "no id": (_record("a", "b", id=""), "`id` is missing"),
    "no conversations": ({"id": "r"}, "`conversations` is missing"),
    "one message": (_record("a"), "no list of at least two messages"),
    "a role": (
        {"id": "r", "conversations": [{"role": "usr", "content": "a"}] * 2},
        r"`conversations\[0\].role` is 'usr'",
    ),
    "two users": (
        {"id": "r", "conversations": [{"role": "user", "content": "a"}] * 2},
        "where 'assistant' was expected",
    ),
    "no text": ({"id": "r", "conversations": [{"role": "user"}] * 2}, r"`conversations\[0\].content` is no text"),
    "an empty answer": (_record("a", " "), r"`conversations\[1\].content` is empty"),
    "no answer": (_record("a", "b", "c"), "the last question has no answer"),
    "an odd image": (_record("a", "b", image=["x.png"]), "`image` is neither"),
    "an odd key": (_record("a", "b", image={"<img>": "x.png"}), "`image` has the key '<img>'"),
    "a tag twice": (_record("<image><image>", "b", image="x.png"), "holds 2 <image> tags for one image"),
    "a tag later": (_record("a", "b", "<image>", "c", image="x.png"), r"`conversations\[2\].content` holds <image>"),
    "a tag without image": (_record("<image>", "b"), "the record has no `image`"),
    "a tag among names": (_record("<image>", "b", image={"<image_00>": "x"}), "its images have names"),
    "an unknown marker": (
        _record("<image_07>", "b", image={"<image_00>": "x"}),
        "holds <image_07>, which `image` does",
    ),
    "an unused marker": (_record("a", "b", image={"<image_00>": "x"}), "names <image_00>, which stands nowhere"),
    "a marker twice": (_record("<image_00><image_00>", "b", image={"<image_00>": "x"}), "more than once"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_names_its_field(name):
    record, words = BAD[name]
    found = minicpm.parse(record, SOURCE)
    assert isinstance(found, Rejected)
    with pytest.raises(DataError, match=words):
        raise DataError([found.problem])
    assert found.fix


def test_an_id_used_twice_is_rejected_with_the_first_record(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([_record("a", "b"), _record("c", "d")]))
    first, second = minicpm.read(path)
    assert isinstance(first, Sample)
    assert second.what == "`id` 'r' is used by record 0 as well"


_TEXT = st.text(alphabet="ab .?", min_size=1).filter(str.strip).map(str.strip)


@st.composite
def _samples(draw):
    n_pairs, n_images = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    texts = [draw(_TEXT) for _ in range(2 * n_pairs)]
    places = sorted(draw(st.lists(st.integers(0, n_pairs - 1), min_size=n_images, max_size=n_images)))
    for place in places:
        texts[2 * place] = IMAGE_TAG + "\n" + texts[2 * place]
    roles = ("user", "assistant") * n_pairs
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=True))
    return Sample("x", tuple(f"{n}.png" for n in range(n_images)), turns, SOURCE)


@settings(max_examples=60, deadline=None)
@given(_samples())
def test_llava_to_minicpm_and_back_keeps_pictures_words_and_their_order(sample):
    there = minicpm.parse(convert.to_minicpm(sample), SOURCE)
    assert isinstance(there, Sample)
    back = llava.parse(convert.to_llava(there), SOURCE)
    assert isinstance(back, Sample)
    assert there.images == back.images == sample.images
    for one, two, three in zip(sample.turns, there.turns, back.turns, strict=True):
        words = [turn.text.replace(IMAGE_TAG, f" {IMAGE_TAG} ").split() for turn in (one, two, three)]
        assert words[0] == words[1] == words[2]


def test_the_verb_converts_files_and_lists_what_it_cannot(tmp_path):
    source, output = tmp_path / "a.json", tmp_path / "new" / "b.json"
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a"}]
    source.write_text(
        json.dumps([{"image": "a.png", "conversations": talk}, {"id": "t", "conversations": talk[1:] * 2}])
    )
    with pytest.raises(DataError, match="roles out of order"):
        data.main(["convert", str(source), str(output), "--to", "minicpm"])
    assert not output.exists()
    source.write_text(json.dumps([{"image": "a.png", "conversations": talk}]))
    assert data.main(["convert", str(source), str(output), "--to", "minicpm"]) == 0
    (record,) = json.loads(output.read_text())
    assert record == {
        "id": "0",
        "image": "a.png",
        "conversations": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "a"}],
    }
