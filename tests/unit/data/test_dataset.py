import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlmrun.data.reading import MAX_LISTED, list_skipped
from vlmrun.data.records import open_datasets
from vlmrun.data.templates import TEMPLATES
from vlmrun.errors import ConfigError, DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN


def opened(config, encoder, skipped=None):
    folder = Path(config.annotations).parent / "index"
    return open_datasets({"d": config}, ["d"], encoder=encoder, skipped=skipped, folder=folder)


def empty_answers(*which):
    def change(records):
        for index in which:
            records[index]["conversations"][1]["value"] = ""

    return change


def test_items(write_data, encoder):
    dataset = opened(write_data(), encoder)
    assert len(dataset) == 10
    text_only, seen = dataset[0], dataset[4]
    assert text_only.pixels.shape == (0, 3, 8, 8)
    assert seen.pixels.shape == (1, 3, 8, 8)
    assert np.allclose(seen.pixels, (4 / 255 - 0.5) / 0.5, atol=1e-6)  # float32 rounding
    assert seen.encoded.input_ids.count(IMAGE_TOKEN) == 1
    assert (seen.id, dataset.sample_id(4), seen.skipped) == ("r4", "r4", None)


def test_sources_follow_each_other(write_data, encoder, tmp_path):
    data = {"a": write_data(3, name="a"), "b": write_data(4, name="b")}
    dataset = open_datasets(data, ["b", "a", "b"], encoder=encoder, skipped=None, folder=tmp_path)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == [f"r{i}" for i in (0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3)]
    with pytest.raises(ConfigError, match="no data named 'c'"):
        open_datasets(data, ["c"], encoder=encoder, skipped=None, folder=tmp_path)


def test_a_record_without_id_is_named_by_its_place(write_data, encoder):
    config = write_data(2, change=lambda records: records[1].pop("id"))
    assert opened(config, encoder).sample_id(1) == f"{config.annotations}[1]"


def test_images_are_opened_only_when_asked_for(write_data, encoder):
    config = write_data()
    dataset = opened(config, encoder)
    (Path(config.images) / "4.png").unlink()
    assert dataset[5].skipped is None
    with pytest.raises(DataError, match=r"image '4\.png' does not exist"):
        dataset[4]


def test_all_bad_records_are_told_at_once(write_data, encoder):
    with pytest.raises(DataError) as error:
        opened(write_data(change=empty_answers(2, 5)), encoder)
    assert [problem.where.split("[")[-1] for problem in error.value.problems] == ["2] (id 'r2')", "5] (id 'r5')"]


def test_a_long_list_of_bad_records_is_cut(write_data, encoder):
    with pytest.raises(DataError, match=r"5 more bad records \(25 in all\)") as error:
        opened(write_data(25, change=empty_answers(*range(25))), encoder)
    assert len(error.value.problems) == MAX_LISTED + 1


def test_skip_leaves_out_counts_and_lists(write_data, encoder, tmp_path, caplog):
    config = write_data(on_error="skip", change=empty_answers(2, 5))
    for _ in range(2):  # a resumed run does not list them again
        dataset = opened(config, encoder, tmp_path / "logs" / "skipped.jsonl")
    assert len(dataset) == 8
    assert [dataset.sample_id(i) for i in range(3)] == ["r0", "r1", "r3"]
    lines = [json.loads(line) for line in (tmp_path / "logs" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["index"], line["id"], line["reason"]) for line in lines] == [
        (2, "r2", "empty answer in message 1"),
        (5, "r5", "empty answer in message 1"),
    ]
    assert lines[0]["source"] == config.annotations


def test_a_source_of_bad_records_only_is_an_error(write_data, encoder):
    with pytest.raises(DataError, match="no usable record"):
        opened(write_data(2, on_error="skip", change=empty_answers(0, 1)), encoder)


def test_a_corrupt_image_keeps_its_place_under_skip(write_data, encoder):
    config = write_data(on_error="skip")
    good = opened(config, encoder)[4]
    (Path(config.images) / "4.png").write_bytes(b"not an image")
    bad = opened(config, encoder)[4]
    assert bad.encoded.input_ids == good.encoded.input_ids
    assert set(bad.encoded.labels) == {IGNORE}
    assert bad.encoded.n_supervised == 0
    assert bad.pixels.shape == good.pixels.shape
    assert not bad.pixels.any()
    assert "cannot be read" in bad.skipped
    assert "r4" in bad.skipped


def test_a_corrupt_image_is_an_error_under_fail(write_data, encoder):
    config = write_data()
    (Path(config.images) / "4.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="cannot be read"):
        opened(config, encoder)[4]


def test_a_sample_beyond_the_length(write_data, encoder):
    def change(records):
        records[3]["conversations"][0]["value"] = "word " * 100

    item = opened(write_data(on_error="skip", change=change), encoder)[3]
    assert item.encoded.labels == [IGNORE]
    assert item.pixels.shape == (0, 3, 8, 8)
    assert "no token of an answer" in item.skipped
    with pytest.raises(DataError, match=r"\[3\] \(id 'r3'\)"):
        opened(write_data(change=change, name="other"), encoder)[3]


def test_missing_image_folder(write_data, encoder):
    config = write_data().model_copy(update={"images": "/nowhere/images"})
    with pytest.raises(DataError, match="image folder does not exist"):
        opened(config, encoder)


def test_can_be_sent_to_another_process(write_data, encoder):
    dataset = opened(write_data(), encoder)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[4].encoded == dataset[4].encoded


def test_skipped_lines_are_listed_once(tmp_path):
    path = tmp_path / "skipped.jsonl"
    list_skipped(path, [{"id": "a"}, {"id": "a"}, {"id": "b"}])
    list_skipped(path, [{"id": "b"}, {"id": "ü"}])
    assert path.read_text("utf-8") == '{"id": "a"}\n{"id": "b"}\n{"id": "ü"}\n'


def test_records_a_template_cannot_show_are_found_at_once(write_data, encoder):
    captions = replace(encoder, template=TEMPLATES["plain"])
    with pytest.raises(DataError, match="template 'plain' takes one question with an image") as error:
        opened(write_data(), captions)
    assert len(error.value.problems) == 4  # the text-only ones
    assert len(opened(write_data(on_error="skip", name="other"), captions)) == 6


def remove(config, *which):
    for index in which:
        (Path(config.images) / f"{index}.png").unlink()


def test_missing_images_are_told_at_once_with_the_other_problems(write_data, encoder):
    config = write_data(change=empty_answers(2, 7))
    remove(config, 1, 5)
    with pytest.raises(DataError) as error:
        opened(config, encoder)
    problems = error.value.problems
    assert [problem.where.split("[")[-1] for problem in problems] == [f"{i}] (id 'r{i}')" for i in (1, 2, 5, 7)]
    assert "image '5.png' does not exist" in problems[2].what
    assert f"{config.images}/5.png" in problems[2].what
    assert "did you mean" in problems[2].fix


def test_missing_images_are_left_out_under_skip(write_data, encoder, tmp_path):
    config = write_data(on_error="skip", change=empty_answers(2))
    remove(config, 1, 5)
    for _ in range(2):
        dataset = opened(config, encoder, tmp_path / "skipped.jsonl")
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["r0", "r3", "r4", "r6", "r7", "r8", "r9"]
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [1, 2, 5]
    assert all("does not exist" in lines[i]["reason"] for i in (0, 2))


def test_each_picture_is_looked_up_once_and_none_is_opened(write_data, encoder, monkeypatch):
    def share(records):
        for record in records[1::3]:
            record["image"] = "1.png"

    config = write_data(change=share)
    looked_up, lstat = [], Path.lstat

    def counting(path):
        looked_up.append(path.name)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", counting)
    monkeypatch.setattr("PIL.Image.open", lambda *args: pytest.fail("a picture was opened"))
    opened(config, encoder)
    assert sorted(name for name in looked_up if name.endswith(".png")) == ["1.png", "2.png", "5.png", "8.png"]


def test_a_near_name_is_looked_for_only_for_the_problems_shown(write_data, encoder, monkeypatch):
    config = write_data(90)
    remove(config, *(i for i in range(90) if i % 3))
    (Path(config.images) / "x.png").touch()
    asked = []
    monkeypatch.setattr("vlmrun.data.images.missing.closest", lambda name, options: asked.extend(options[:1]))
    with pytest.raises(DataError, match=r"40 more bad records \(60 in all\)"):
        opened(config, encoder)
    assert len(asked) == MAX_LISTED


def test_images_without_a_folder_are_told_at_once(write_data, encoder):
    config = write_data().model_copy(update={"images": None})
    with pytest.raises(DataError, match="its data has no image folder") as error:
        opened(config, encoder)
    assert len(error.value.problems) == 6


def test_an_impossible_image_name_is_a_bad_record(write_data, encoder):
    def change(records):
        records[1]["image"] = "x" * 300 + ".png"
        records[2]["image"] = "a\0.png"

    with pytest.raises(DataError, match="cannot be found: File name too long") as error:
        opened(write_data(change=change), encoder)
    assert "is not a usable path" in error.value.problems[1].what
