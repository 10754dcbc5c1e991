"""Text that no tokenizer takes is found where a file is read first, and named by file and record."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmrun.cli import app
from vlmrun.data import formats, tokenizing
from vlmrun.data.encode import encode
from vlmrun.data.formats import base, values, window
from vlmrun.data.lint import Rules, lint
from vlmrun.data.reading import list_skipped
from vlmrun.data.sample import Rejected, Sample, Turn
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import DataError

halves = st.integers(0xD800, 0xDFFF).map(chr)
texts = st.text(max_size=6)


def record(ask="What?", answer="That.", **more):
    return {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]} | more


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(half=halves, before=texts, behind=texts, place=st.sampled_from(["id", "ask", "answer", "system", "image"]))
def test_half_a_character_is_found_wherever_it_stands(tmp_path, half, before, behind, place):
    text = before.strip("\x00") + "a" + half + "b" + behind
    more = {"ask": "<image>What?", "image": text} if place == "image" else {place: text}
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(map(json.dumps, [record(), record(**more), record()])))
    found = list(formats.reader("llava")(path))
    assert [isinstance(each, Sample) for each in found] == [True, False, True]
    json.dumps(found[1].to_dict(), ensure_ascii=False).encode("utf-8")
    assert [(each.kind, each.index) for each in lint(path, Rules(marks=()))][:1] == [("characters", 1)]
    list_skipped(tmp_path / "skipped.jsonl", [found[1].to_dict()])


@given(text=st.text(max_size=20).filter(lambda text: not values.is_blank(text) and "\x00" not in text and text.strip()))
def test_whole_characters_of_any_script_pass(text):
    sample = Sample("a", (), (Turn("user", text), Turn("assistant", text)), ("f", 0))
    assert values.usable_text(sample) is sample


def test_a_zero_character_is_found(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([record(answer="a\0b")]))
    assert [each.kind for each in lint(path, Rules(marks=()))] == ["characters"]


@pytest.mark.parametrize("blank", [" \n", "\u200b", "\ufeff \u2060", "\u00ad"])
def test_text_of_no_width_is_no_text(tmp_path, blank):
    path = tmp_path / "f.json"
    path.write_text(json.dumps([record(answer=blank), record(ask=blank)]))
    assert [each.kind for each in lint(path, Rules(marks=()))] == ["empty", "empty"]


def test_the_report_of_lint_holds_half_a_character_as_json_writes_it(tmp_path, capsys):
    path, report = tmp_path / "f.jsonl", tmp_path / "report.jsonl"
    path.write_text("\n".join(json.dumps(record(ask="", id=id)) for id in ("a\ud800", "b")))
    assert app.main(["data", "lint", str(path), "--report", str(report)]) == 3
    rows = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    assert [row["index"] for row in rows] == [0, 1]
    assert "\\ud800" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_byte_order_marks_and_line_ends_of_windows_are_read(tmp_path, ending):
    lines = [json.dumps(record(ask="무슨 색?", id=id), ensure_ascii=False) for id in "ab"]
    text = "[" + ",\r\n".join(lines) + "]" if ending == "json" else "".join(f"\ufeff{line}\r\n" for line in lines)
    (tmp_path / f"f.{ending}").write_bytes(("\ufeff" * (ending == "json") + text).encode("utf-8"))
    found = list(formats.reader("llava")(tmp_path / f"f.{ending}"))
    assert [each.turns[0].text for each in found] == ["무슨 색?"] * 2


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("bad", ['{"a": ' * 100_000, '{"a": ' + "1" * 5000 + "}"], ids=["deep", "digits"])
def test_what_python_cannot_hold_is_a_malformed_record(tmp_path, ending, bad):
    path = tmp_path / f"f.{ending}"
    path.write_text(f"[{bad}]" if ending == "json" else f"{bad}\n{json.dumps(record())}")
    assert [(each.kind, each.index) for each in lint(path, Rules(marks=()))] == [("malformed", 0)]
    if ending == "jsonl":
        assert isinstance(list(formats.reader("llava")(path))[1], Sample)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_record_that_is_too_long_is_named_and_never_held(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(base, "MAX_RECORD_BYTES", 1 << 12)
    monkeypatch.setattr(base, "_SKIPPED_AT_ONCE", 100)
    monkeypatch.setattr(window, "MAX_RECORD_BYTES", 1 << 12)
    path = tmp_path / f"f.{ending}"
    lines = [json.dumps(record(answer="a" * n)) for n in (1, 5_000_000, 2)]
    path.write_text("[" + ",".join(lines) + "]" if ending == "json" else "\n".join(lines))
    assert [(each.kind, each.index) for each in lint(path, Rules(marks=()))] == [("malformed", 1)]
    if ending == "jsonl":
        found = list(formats.reader("llava")(path))
        assert [isinstance(each, Rejected) for each in found] == [False, True, False]
        assert "line 2 is longer" in found[1].what


def test_what_a_tokenizer_raises_is_a_problem_of_the_record(encoder):
    with pytest.raises(DataError, match="cannot take this text: ValueError: no"), tokenizing.refusals():
        raise ValueError("no")
    sample = Sample("r1", (), (Turn("user", "half \ud800"), Turn("assistant", "x")), ("f.json", 3))
    with pytest.raises(DataError, match="the tokenizer cannot take this text") as error:
        encoder.encode(sample)
    assert error.value.problems[0].where == "f.json[3] (id 'r1')"
    with pytest.raises(DataError):
        encode(sample, TEMPLATES["micro"], encoder.tokenizer, image_tokens=[], max_length=64)


def test_a_pipe_or_a_device_as_annotations_is_refused_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="a named pipe stands where a file is expected"):
        list(formats.reader("llava")(tmp_path / "pipe.json"))
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="a device stands where"):
        list(formats.reader("vqa")(tmp_path / "endless.jsonl"))
