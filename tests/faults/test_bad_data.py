"""Bad records, pictures and files: a sentence that says what, where and how to mend it; or counted and listed."""

import json
import struct
import zlib

import pytest


def spoil(records, number, **changes):
    records[number] = {**records[number], **changes}
    return records


def turns(*pairs):
    return [{"from": who, "value": text} for who, text in pairs]


QUESTION = ("human", "<image>\nWhat?")

BAD_RECORDS = {
    "two placeholders, one picture": (
        {"conversations": turns(("human", "<image><image>What?"), ("gpt", "a"))},
        "<image>",
    ),
    "no placeholder": ({"conversations": turns(("human", "What?"), ("gpt", "a"))}, "<image>"),
    "answer first": ({"conversations": turns(("gpt", "a"), QUESTION)}, "human"),
    "two questions": ({"conversations": turns(QUESTION, ("human", "What?"), ("gpt", "a"))}, "human"),
    "unknown role": ({"conversations": turns(QUESTION, ("robot", "a"))}, "robot"),
    "empty answer": ({"conversations": turns(QUESTION, ("gpt", "  "))}, "empty"),
    "no turns": ({"conversations": []}, "conversations"),
    "not a list": ({"conversations": "hello"}, "conversations"),
    "missing picture": ({"image": "none.png"}, "none.png"),
    "outside the root": ({"image": "../own.json"}, "own.json"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_refused_with_its_place(own_data, pretrain, name):
    changes, text = BAD_RECORDS[name]
    done = pretrain(spoil(own_data, 5, **changes))
    assert done.returncode == 3, done.stderr
    assert text in done.stderr
    assert "own.json" in done.stderr
    assert "r5" in done.stderr or "record 5" in done.stderr or "record 6" in done.stderr
    assert "  fix: " in done.stderr
    assert "Traceback" not in done.stderr


def test_all_bad_records_are_told_at_once(own_data, pretrain):
    for number, name in enumerate(["no placeholder", "empty answer", "unknown role"]):
        spoil(own_data, number, **BAD_RECORDS[name][0])
    done = pretrain(own_data)
    assert done.returncode == 3
    assert all(f"r{number}" in done.stderr for number in range(3)), done.stderr


def test_skip_counts_and_lists_instead(own_data, pretrain, tmp_path):
    for number, name in enumerate(["no placeholder", "missing picture"]):
        spoil(own_data, number, **BAD_RECORDS[name][0])
    (tmp_path / "images" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    done = pretrain(own_data, "data.llava.on_error=skip", "stage.pretrain.epochs=3")  # every record is met
    assert done.returncode == 0, done.stderr
    (listing,) = (tmp_path / "outputs" / "stages").glob("pretrain-*/skipped.jsonl")
    rows = [json.loads(line) for line in listing.read_text().splitlines()]
    assert {row["id"] for row in rows} == {"r0", "r1", "r7"}
    assert len(rows) == 3, "each is listed once, however often it is met"
    assert all(row["reason"] for row in rows)


def test_malformed_json_is_told_with_its_line(own_data, pretrain):
    text = json.dumps(own_data, indent=1)
    broken = text.replace('"id": "r3",', '"id": "r3"')
    done = pretrain(broken)
    assert done.returncode == 3, done.stderr
    line = 1 + text[: text.index('"id": "r3"')].count("\n")
    assert f"line {line}" in done.stderr or f"line {line + 1}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_corrupt_picture_is_named(own_data, pretrain, tmp_path):
    whole = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(whole[: len(whole) // 2])
    done = pretrain(own_data)
    assert done.returncode == 3, done.stderr
    assert "2.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_huge_picture_is_refused_before_it_is_unpacked(own_data, pretrain, tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "images" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content + b"\0\0\0\0IDAT5\xaf\x06\x1e")
    done = pretrain(own_data)
    assert done.returncode == 3, done.stderr
    assert "2.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_files_are_found_before_a_worker_starts(own_data, pretrain, tmp_path):
    done = pretrain(None)
    assert done.returncode == 2
    assert "no file" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_an_image_root_that_is_a_link_elsewhere_does_not_open_the_way_out(own_data, pretrain, tmp_path):
    (tmp_path / "secret.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    done = pretrain(spoil(own_data, 5, image="link.png"))
    assert done.returncode == 3, done.stderr
    assert "link.png" in done.stderr


def test_a_loader_process_tells_a_bad_picture_in_a_sentence(own_data, pretrain, tmp_path):
    (tmp_path / "images" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    done = pretrain(own_data, "stage.pretrain.workers=1")
    assert done.returncode == 3, done.stderr
    assert "2.png" in done.stderr
    assert "id 'r2'" in done.stderr
    assert "  fix: " in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_pictures_are_told_at_once_with_loader_processes(own_data, pretrain, tmp_path):
    for number in (2, 6):
        (tmp_path / "images" / f"{number}.png").unlink()
    done = pretrain(own_data, "stage.pretrain.workers=1")
    assert done.returncode == 3, done.stderr
    assert "2.png" in done.stderr
    assert "6.png" in done.stderr
    assert "Traceback" not in done.stderr
