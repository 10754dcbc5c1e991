import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmrun.data import findings, lint, marks
from vlmrun.data.findings import Tally
from vlmrun.data.images.finding import ImageFolder
from vlmrun.data.lint import Measure, Rules
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import DataError


def record(id="r", image="a.png", ask="<image>\nWhat is it?", answer="a cat", **changes):
    talk = [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": talk} | changes


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "outside.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:20])
    (folder / "empty.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def found(tmp_path):
    """Findings of records as (class, index), and the tally."""

    def run(records, rules=None, name="d.json"):
        rules = rules or Rules(marks=())
        path = tmp_path / name
        lines = "".join(json.dumps(each) + "\n" for each in records)
        path.write_text(lines if name.endswith("l") else json.dumps(records))
        return [(finding.kind, finding.index) for finding in lint.lint(path, rules)]

    return run


def talk(*messages):
    return [{"from": who, "value": text} for who, text in messages]


FORM = {
    "not an object": ([], "record"),
    "no conversations": ({"id": "x"}, "record"),
    "image is a number": (record(image=3), "record"),
    "an unknown role": (record(conversations=talk(("robot", "<image>hi"), ("gpt", "yes"))), "roles"),
    "two questions": (record(conversations=talk(("human", "<image>hi"), ("human", "a"), ("gpt", "b"))), "roles"),
    "an answer first": (record(conversations=talk(("gpt", "hi"), ("human", "<image>"))), "roles"),
    "an empty answer": (record(answer=" "), "empty"),
    "an empty question": (record(image=None, ask=""), "empty"),
    "no answer": (record(conversations=talk(("human", "<image>hi"))), "empty"),
    "an image and no tag": (record(ask="What is it?"), "placeholders"),
    "a tag and no image": (record(image=None), "placeholders"),
    "two tags": (record(ask="<image><image>What?"), "placeholders"),
}


@pytest.mark.parametrize(("bad", "kind"), FORM.values(), ids=FORM)
def test_the_form_of_a_record_is_judged(found, bad, kind):
    assert found([record("1"), bad, record("2", answer="a dog")]) == [(kind, 1)]


def test_a_clean_file_has_no_finding(found, images):
    assert found([record("1"), record("2", answer="a dog")], Rules(images=ImageFolder(images), records=2)) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("b.png", "image_missing"),
        ("../outside.png", "image_outside"),
        ("/etc/hosts", "image_outside"),
        ("broken.png", "image_broken"),
        ("empty.jpg", "image_broken"),
    ],
)
def test_pictures_are_looked_at(found, images, name, kind):
    assert found([record("1"), record("2", image=name)], Rules(images=ImageFolder(images), marks=())) == [(kind, 1)]


def test_a_picture_too_large_to_be_safe_is_found(found, images):
    assert found([record()], Rules(images=ImageFolder(images, max_pixels=100))) == [("image_broken", 0)]


def test_a_missing_image_folder_is_an_error(found, tmp_path):
    with pytest.raises(DataError, match="image folder does not exist"):
        found([record()], Rules(images=ImageFolder(tmp_path / "none")))


@pytest.mark.parametrize("mark", marks.COMMON_MARKS)
def test_common_marks_are_found_when_no_template_is_known(found, mark):
    assert found([record(answer=f"a{mark}b")], Rules()) == [("special_text", 0)]


def test_the_marks_of_a_template_and_of_a_tokenizer_are_found(found):
    known = marks.marks_of(TEMPLATES["vicuna_v1"], ["<reserved>"])
    for text in ("a </s> b", "so ASSISTANT: yes", "he said USER: no", "<reserved>"):
        assert found([record(answer=text)], Rules(marks=known)) == [("special_text", 0)], text
    assert found([record(answer="an ASSISTANT <|im_end|>")], Rules(marks=known)) == []


def test_a_record_that_the_template_cannot_show_is_found(found):
    rules = Rules(template=TEMPLATES["plain"], marks=())
    assert found([record("1"), record("2", image=None, ask="hi")], rules) == [("template", 1)]


def test_lengths_count_image_tokens(found, encoder):
    def rules(max_length, tokens=4):
        return Rules(marks=(), measure=Measure(TEMPLATES["micro"], encoder.tokenizer, lambda size: tokens, max_length))

    assert found([record()], rules(64)) == []
    assert found([record()], rules(64, tokens=100)) == [("not_learnt", 0)]
    assert found([record(answer="a cat " * 30)], rules(64)) == [("too_long", 0)]
    assert found([record(ask="<image>" + "what " * 60)], rules(64)) == [("not_learnt", 0)]


def test_the_size_of_a_picture_decides_its_tokens(found, images, encoder):
    seen = []
    measure = Measure(TEMPLATES["micro"], encoder.tokenizer, lambda size: seen.append(size) or 4, 64)
    found([record()], Rules(images=ImageFolder(images), measure=measure))
    assert seen == [(20, 10)]


def test_duplicates_name_the_later_record(found):
    twice = [record("1"), record("2", answer="b"), record("1", answer="c"), record("4"), record("5", answer="c")]
    assert found(twice) == [("duplicate_id", 2), ("duplicate_record", 3), ("duplicate_record", 4)]
    without = [{**record(), "id": None}, {**record(answer="b"), "id": None}]
    assert found([{k: v for k, v in each.items() if k != "id"} for each in without]) == []


def test_the_number_of_records_is_compared(found):
    assert found([record()], Rules(records=2)) == [("count", None)]
    assert found([record()], Rules(records=2, limit=1)) == []


def test_a_limit_stops_the_reading(found):
    assert found([record("1"), [], []], Rules(limit=2, marks=())) == [("record", 1)]


def test_a_damaged_list_ends_with_a_finding_and_a_damaged_line_does_not(tmp_path):
    path = tmp_path / "d.json"
    path.write_text("[" + json.dumps(record("1")) + ", {]")
    tally = Tally()
    (finding,) = lint.lint(path, Rules(), tally)
    assert (finding.kind, finding.index, tally.n_records) == ("malformed", 1, 1)
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record("1")) + "\n{\n" + json.dumps(record("2", answer="b")))
    tally = Tally()
    assert [f.kind for f in lint.lint(path, Rules(), tally)] == ["malformed"]
    assert tally.n_records == 3


def test_questions_are_judged_too(found, images):
    good = {"question_id": 1, "image": "a.png", "text": "What?", "answer": "x"}
    lines = [
        good,
        good | {"answer": "y"},
        good | {"question_id": 2, "answer": ""},
        good | {"question_id": 3, "image": "z"},
    ]
    rules = Rules(format="vqa", images=ImageFolder(images))
    assert found(lines, rules, "q.jsonl") == [("duplicate_id", 1), ("empty", 2), ("image_missing", 3)]


def test_a_tally_counts_all_and_keeps_the_first():
    tally = Tally(n_examples=2)
    for index in range(5):
        tally.add(findings.Finding("roles", "f", index, "", ""))
    assert tally.counts == {"roles": 5}
    assert [example.index for example in tally.examples["roles"]] == [0, 1]


@given(st.lists(st.integers(0, 6)))
def test_earlier_is_the_first_place_of_an_equal_number(numbers):
    expected = [numbers.index(n) if n and numbers.index(n) < i else -1 for i, n in enumerate(numbers)]
    assert list(lint.earlier(array("Q", numbers))) == expected


def test_every_class_has_a_line_in_the_table():
    assert {kind for _, kind in FORM.values()} <= set(findings.CLASSES)


ODD = {
    "transparent.png": (Image.new("RGBA", (6, 4)), {}, "image_transparent"),
    "deep.png": (Image.new("I;16", (6, 4)), {}, "image_deep"),
    "printed.jpg": (Image.new("CMYK", (6, 4)), {}, "image_colors"),
    "moving.gif": (
        Image.new("L", (6, 4)),
        {"save_all": True, "append_images": [Image.new("L", (6, 4), 9)]},
        "image_animated",
    ),
}  # fmt: skip


def test_odd_images_are_counted_by_kind_once_and_are_no_problem(tmp_path, images):
    records = [record("0")]
    for number, (name, (image, options, _)) in enumerate(ODD.items()):
        image.save(images / name, **options)
        records += [record(f"{number}a", image=name, ask=f"<image>{n}") for n in range(2)]
    (tmp_path / "d.json").write_text(json.dumps(records))
    tally = Tally()
    for finding in lint.lint(tmp_path / "d.json", Rules(images=ImageFolder(images))):
        tally.add(finding)
    kinds = {kind: 1 for _, _, kind in ODD.values()}
    assert {kind: n for kind, n in tally.counts.items() if kind in findings.NOTES} == kinds
    assert tally.n_problems == tally.counts["duplicate_id"] == len(ODD)


def test_damage_behind_the_header_is_found_by_decoding(found, images):
    whole = Image.effect_noise((90, 90), 80)
    for kind in ("jpg", "png", "webp", "avif", "gif"):
        whole.convert("RGB").save(images / f"whole.{kind}")
        content = (images / f"whole.{kind}").read_bytes()
        (images / f"cut.{kind}").write_bytes(content[: len(content) * 2 // 3])
        records = [record("1", image=f"whole.{kind}"), record("2", image=f"cut.{kind}")]
        assert found(records, Rules(images=ImageFolder(images))) == [("image_broken", 1)], kind
    records = [record("1", image="whole.jpg"), record("2", image="cut.jpg")]
    assert found(records, Rules(images=ImageFolder(images), n_decoded=1)) == []
    assert found(records, Rules(images=ImageFolder(images), n_decoded=None)) == [("image_broken", 1)]


def test_images_that_were_not_decoded_are_counted(tmp_path, images):
    (tmp_path / "d.json").write_text(json.dumps([record("1"), record("2", image="broken.png"), record("3")]))
    tally = Tally()
    list(lint.lint(tmp_path / "d.json", Rules(images=ImageFolder(images), n_decoded=1), tally))
    assert tally.n_by_header == 1
