"""Shards that are written, read, damaged, and described wrongly."""

import json
import shutil
import tarfile

import pytest

from vlmrun.data.formats import energon, wds
from vlmrun.data.images.finding import ImageFolder, find_image
from vlmrun.data.images.loading import image_size, open_image
from vlmrun.data.lint import Rules, lint
from vlmrun.data.prepare.write_shards import SKIPPED, Layout, write
from vlmrun.data.sample import Rejected
from vlmrun.data.shards import keys, metadata, tar
from vlmrun.errors import DataError


def made(records, folder, n=6, most=2, version=7, shares=(1, 0, 0), change=lambda records: records):
    write(records(n, change), folder, Layout(max_count=most), finish=lambda new: metadata.write(new, version, shares))
    return folder


def edited(number, **changes):
    def change(records):
        records[number] = records[number] | changes
        return records

    return change


def without(number, key):
    def change(records):
        del records[number][key]
        return records

    return change


TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "box"}]
ODD = {
    "a missing id": (without(1, "id"), "`id` is missing"),
    "a number": (edited(1, id=7), "is no text"),
    "a dot": (edited(1, id="a.b"), "has a dot"),
    "an empty id": (edited(1, id=""), "is empty"),
    "a folder alone": (edited(1, id="a/"), "is empty"),
    "a way out": (edited(1, id="../a"), "is no name"),
    "an id twice": (edited(4, id="0001"), "is used by record 1"),
    "no image": (without(1, "image"), "`image`"),
    "a picture that is not there": (edited(1, image="images/none.jpg"), "does not exist"),
    "a picture outside": (edited(1, image="../../x.jpg"), "outside"),
    "one turn": (edited(1, conversations=TURNS[:1]), "has no answer"),
    "the answer first": (edited(1, conversations=TURNS[::-1]), "out of order"),
    "no turns": (without(1, "conversations"), "conversations"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_record_is_refused_by_name_and_leaves_nothing_behind(name, records, tmp_path):
    change, told = ODD[name]
    with pytest.raises(DataError, match=told):
        write(records(6, change), tmp_path / "wds", Layout(max_count=2, writers=2))
    assert not list(tmp_path.glob("wds*"))


@pytest.mark.parametrize("name", ODD)
def test_an_odd_record_is_left_out_and_listed_when_asked(name, records, tmp_path):
    change, _ = ODD[name]
    written = write(records(6, change), tmp_path / "wds", Layout(max_count=2), on_error="skip")
    assert (written.n_samples, written.n_skipped, written.n_shards) == (5, 1, 3)
    (line,) = (tmp_path / "wds" / SKIPPED).read_text("utf-8").splitlines()
    assert json.loads(line)["index"] in (1, 4)
    assert len([sample for sample in wds.read(tmp_path / "wds") if not isinstance(sample, Rejected)]) == 5


def test_names_may_have_folders_and_underscores(records, tmp_path):
    def change(found):
        for record, name in zip(found, ("v1.5/a", "__b__", "c"), strict=True):
            record["id"] = name
        return found

    folder = made(records, tmp_path / "wds", n=3, change=change)
    assert [sample.id for sample in energon.read(folder)] == ["v1.5/a", "__b__", "c"]


def test_a_shard_is_closed_by_its_content_too(records, tmp_path):
    written = write(records(6), tmp_path / "wds", Layout(max_bytes=1))
    assert written.n_shards == 6
    assert write(records(6), tmp_path / "padded", Layout(pattern="x-%03d.tar")).n_shards == 1
    assert (tmp_path / "padded" / "x-000.tar").is_file()


@pytest.mark.parametrize("pattern", ["x.tar", "%d%d.tar", "%s%%.zip", "a/%d.tar", "%d"])
def test_a_pattern_that_names_no_shards_is_refused(pattern, records, tmp_path):
    with pytest.raises(DataError, match="names no shards"):
        write(records(2), tmp_path / "wds", Layout(pattern=pattern))


def test_further_turns_are_read_and_counted_where_a_field_map_leaves_them_out(records, tmp_path):
    more = [*TURNS, {"from": "human", "value": "And?"}, {"from": "gpt", "value": "red"}]
    written = write(records(3, edited(1, conversations=more)), tmp_path / "wds", Layout())
    assert written.n_longer == 1
    metadata.write(tmp_path / "wds", 7, [1, 0, 0])
    assert [len(sample.turns) for sample in wds.read(tmp_path / "wds")] == [2, 4, 2]
    assert [len(sample.turns) for sample in energon.read(tmp_path / "wds")] == [2, 2, 2]


def test_members_are_read_where_they_lie(records, tmp_path):
    folder = made(records, tmp_path / "wds")
    source = tmp_path / "source" / "images"
    for number, sample in enumerate(energon.read(folder)):
        place = tar.parse_place(sample.images[0])
        assert place is not None
        assert place.read(folder / place.shard) == (source / f"{number}.jpg").read_bytes()
        assert open_image(ImageFolder(folder), sample.images[0]).size == (8, 8)


def test_a_picture_that_cannot_be_read_is_told_by_its_name(records, tmp_path):
    file = records(2)
    (tmp_path / "source" / "images" / "1.jpg").write_bytes(b"no image")
    write(file, tmp_path / "wds", Layout())
    sound, damaged = wds.read(tmp_path / "wds")
    assert image_size(ImageFolder(tmp_path / "wds"), sound.images[0]) == (8, 8)
    messages = set()
    for _ in range(2):
        with pytest.raises(DataError, match=r"0001\.jpg") as error:
            open_image(ImageFolder(tmp_path / "wds"), damaged.images[0])
        messages.add(str(error.value))
    assert len(messages) == 1
    (found,) = lint(tmp_path / "wds", Rules(format="wds", images=ImageFolder(tmp_path / "wds")))
    assert (found.kind, found.id) == ("image_broken", "0001")


def test_a_place_stays_inside_the_folder(records, tmp_path):
    made(records, tmp_path / "wds")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="outside"):
        find_image(ImageFolder(tmp_path / "other"), "../wds/pretrain-0.tar@0+8/x.jpg")
    with pytest.raises(DataError, match="beyond the end"):
        open_image(ImageFolder(tmp_path / "wds"), "pretrain-0.tar@999999+8/x.jpg")


@pytest.mark.parametrize("kept", [0, 100, 700, 2000, -10240, -11000])
def test_a_shard_that_breaks_off_is_told(kept, records, tmp_path):
    folder = made(records, tmp_path / "wds", n=6, most=6)
    shard = folder / "pretrain-0.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:kept])
    with pytest.raises(DataError, match=r"damaged|breaks off"):
        list(energon.read(folder))


def test_a_flipped_header_is_told(records, tmp_path):
    folder = made(records, tmp_path / "wds", n=6, most=6)
    shard = folder / "pretrain-0.tar"
    content = bytearray(shard.read_bytes())
    place = tar.parse_place(list(wds.read(folder))[3].images[0])
    content[place.offset - 500] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|breaks off"):
        list(wds.read(folder))


def broken(change):
    """A prepared folder with something changed in its metadata."""

    def test(records, tmp_path):
        folder = made(records, tmp_path / "wds")
        change(folder)
        with pytest.raises(DataError) as error:
            list(energon.read(folder))
        return str(error.value)

    return test


def _edit(name, old, new):
    def change(folder):
        path = folder / metadata.FOLDER / name
        assert old in path.read_text("utf-8")
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")

    return change


WRONG = {
    "no metadata": (lambda folder: shutil.rmtree(folder / metadata.FOLDER), "cannot be read"),
    "damaged yaml": (_edit("split.yaml", "split_parts:", "split_parts: ]"), "damaged"),
    "an unknown part": (_edit("split.yaml", "train:", "trian:"), "no part 'train'"),
    "an empty part": (_edit("split.yaml", "exclude: []", "exclude: ['pretrain-{0..2}.tar']"), "has no shard"),
    "a missing shard": (lambda folder: (folder / "pretrain-1.tar").unlink(), "does not exist"),
    "a count": (_edit(".info.json", '"pretrain-1.tar": 2', '"pretrain-1.tar": 3'), "the metadata tell of 3"),
    "a cut index": (lambda folder: _cut(folder / "pretrain-1.tar.idx"), "index has 1 samples"),
    "an index of another": (lambda folder: _shift(folder / "pretrain-1.tar.idx"), "offsets are others"),
    "another sample type": (_edit("dataset.yaml", "VQASample", "VidQASample"), "VidQASample"),
    "a field that is none": (_edit("dataset.yaml", "answers", "anwsers"), "no field 'anwsers'"),
    "an expression": (_edit("dataset.yaml", "json[0][value]", "json[0"), "is no place"),
    "a field map without a field": (_edit("dataset.yaml", "image: jpg", ""), "what `image` is"),
    "weights": (_edit("dataset.yaml", "  image: jpg", "  image: jpg\n  answer_weights: json[2]"), "by weight"),
}


def _cut(path):
    path.write_bytes(path.read_bytes()[:16])


def _shift(path):
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_metadata_are_told(name, records, tmp_path):
    change, told = WRONG[name]
    assert told in broken(change)(records, tmp_path)


def test_a_field_map_that_fits_no_sample_rejects_each_by_its_key(records, tmp_path):
    folder = made(records, tmp_path / "wds")
    fields = {"image": "png", "context": "json[0][value]", "answers": "json[1][value]"}
    found = list(energon.read(folder, fields=fields))
    assert [sample.id for sample in found] == [f"{number:04}" for number in range(6)]
    assert all(isinstance(sample, Rejected) and "has no png" in sample.what for sample in found)
    other = fields | {"image": "png, jpg", "answers": "json[5][value], json[1][value]"}
    assert not any(isinstance(sample, Rejected) for sample in energon.read(folder, fields=other))


def test_a_key_that_is_used_again_is_rejected_and_refused_by_seven(records, tmp_path):
    folder = made(records, tmp_path / "wds", most=3)
    shutil.copy(folder / "pretrain-0.tar", folder / "pretrain-2.tar")
    found = list(wds.read(folder))
    assert [isinstance(sample, Rejected) for sample in found] == [False] * 6 + [True] * 3
    metadata.write(folder, 4, [1, 0, 0])
    with pytest.raises(DataError, match="used twice"):
        metadata.write(folder, 7, [1, 0, 0])


def test_a_compressed_shard_is_refused(records, tmp_path):
    folder = made(records, tmp_path / "wds")
    with tarfile.open(folder / "more.tgz", "w:gz"):
        pass
    with pytest.raises(DataError, match="gunzip"):
        list(wds.read(folder))


@pytest.mark.parametrize("text", ["", "9,1", "1,1,x", "0,0,0", "-1,1,1"])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(DataError, match="is no split"):
        metadata.shares(text)


def test_a_share_without_a_shard_says_what_to_do(records, tmp_path):
    with pytest.raises(DataError, match="gets none of 1 shard") as error:
        made(records, tmp_path / "wds", most=6, shares=(9, 1, 0))
    assert "--split 1,0,0" in str(error.value)
    assert not list(tmp_path.glob("wds*"))


def test_the_prompt_of_a_key_that_names_llava(records, tmp_path):
    write(records(2, edited(1, id="my_llava_1")), tmp_path / "wds", Layout(pattern="llava-%d.tar"))
    plain, named = wds.read(tmp_path / "wds")
    assert keys.as_pai(plain, "energon7") == plain
    assert keys.as_pai(named, "energon7").turns[0].text == "<image>\n"
    assert keys.as_pai(plain, "energon4").turns[0].text == "<image>\n"
    assert keys.as_pai(plain, "energon4").turns[1] == plain.turns[1]
