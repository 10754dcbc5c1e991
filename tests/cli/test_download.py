"""`vlmrun download` against a hub on this machine: what it fetches is where `check` looks, and nothing else is."""

import errno
import io
import json
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hub_server import Hub, serve
from vlmrun.errors import CheckpointError, DataError
from vlmrun.hub import fetch
from vlmrun.hub.items import Model
from vlmrun.hub.unpack import Parts, unpack

VICUNA, CLIP = "models/lmsys/vicuna-7b-v1.5", "models/openai/clip-vit-large-patch14-336"
CAPTIONS = "datasets/liuhaotian/LLaVA-Pretrain"
BUNNY = "datasets/BoyaWu10/Bunny-v1_0-data"
WEIGHTS = b"w" * 3_000_000


def model(**more):
    return {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": b"old", "README.md": b"#"} | more


def zipped(**files):
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return place.getvalue()


def tarred(*names, link=None):
    place = io.BytesIO()
    with tarfile.open(fileobj=place, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"png"))
        if link:
            entry = tarfile.TarInfo("images/link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return place.getvalue()


@pytest.fixture
def download(vlmrun, tmp_path):
    """`download(hub, *arguments)`, in an empty folder with a cache of its own."""

    def start(hub, *arguments, verb="download", offline="0"):
        return vlmrun(
            verb, *arguments, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE=offline, HF_HOME=str(tmp_path / "hf"),
            HF_TOKEN="", HF_HUB_DISABLE_XET="1",
        )  # fmt: skip

    return start


def test_a_dry_run_lists_everything_and_fetches_nothing(download, tmp_path):
    images = {"images.zip": zipped(a__1="png"), "blip_laion_cc_sbu_558k.json": b"[]", "README.md": b"#"}
    with serve(Hub({VICUNA: model(), CLIP: model(), CAPTIONS: images}, gated={VICUNA})) as hub:
        done = download(hub, "llava15_7b", "--dry-run")
    said = done.stdout
    assert "lmsys/vicuna-7b-v1.5 (llm): 3.0 MB, gated\n" in said
    assert "openai/clip-vit-large-patch14-336 (tower): 3.0 MB\n" in said
    assert "license: apache-2.0" in said
    assert "to:      data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json, data/LLaVA-Pretrain/images/\n" in said
    # One repository is not on this hub: said, beside the others.
    assert done.returncode == 3
    assert "the hub has no dataset 'liuhaotian/LLaVA-Instruct-150K'" in done.stderr
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]
    assert not (tmp_path / "data").exists()


def test_a_model_comes_to_where_check_looks_and_its_config_last(download, tmp_path):
    with serve(Hub({CLIP: model()})) as hub:
        done = download(hub, "openai/clip-vit-large-patch14-336")
        assert done.returncode == 0, done.stderr
        fetched = [path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]
        assert fetched == ["model.safetensors", "config.json"], "one kind of weights, no page, and config.json last"
        again = download(hub, "openai/clip-vit-large-patch14-336")
        checked = download(hub, "+recipe=llava15_7b", verb="check", offline="1")
    assert again.stdout == "openai/clip-vit-large-patch14-336: there\n"
    assert "no model folder 'openai" not in checked.stderr
    assert "vlmrun download lmsys/vicuna-7b-v1.5" in checked.stderr


def test_a_broken_connection_is_said_and_the_same_command_resumes(download, tmp_path):
    weights = b"w" * 24_000_000  # more than the client reads at once
    with serve(Hub({CLIP: model(**{"model.safetensors": weights})})) as hub:
        hub.breaks = Breaking({"model.safetensors": 12_000_000})
        first = download(hub, "openai/clip-vit-large-patch14-336")
        assert first.returncode == 4
        assert "the same command resumes" in first.stderr
        assert "Traceback" not in first.stderr
        checked = download(hub, "+recipe=llava15_7b", verb="check", offline="1")
        assert "model.tower.path" in checked.stderr, "half a model is none"
        hub.breaks, before = {}, len(hub.asked)
        second = download(hub, "openai/clip-vit-large-patch14-336")
        ranges = [span for method, path, span in hub.asked[before:] if method == "GET" and "safetensors" in path]
    assert second.returncode == 0, second.stderr
    assert any(span and not span.startswith("bytes=0-") for span in ranges), ranges
    (found,) = (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
    assert found.read_bytes() == weights


class Breaking(dict):
    """A file breaks off; asked again for it, as huggingface_hub does by itself, the hub sends nothing more."""

    def pop(self, key, default=None):
        end = self.get(key, default)
        self.update({key: 0} if key in self else {})
        return end


def test_data_come_to_where_their_entry_says(download, tmp_path):
    files = {"blip_laion_cc_sbu_558k.json": json.dumps([{"id": "x"}]).encode(), "images.zip": zipped(a__1="png")}
    with serve(Hub({CAPTIONS: files})) as hub:
        done = download(hub, "llava_558k")
        assert done.returncode == 0, done.stderr
        checked = download(hub, "+recipe=llava15_7b", verb="check", offline="1")
    folder = tmp_path / "data" / "LLaVA-Pretrain"
    assert json.loads((folder / "blip_laion_cc_sbu_558k.json").read_text()) == [{"id": "x"}]
    assert (folder / "images" / "a" / "1").read_text() == "png"
    assert sorted(path.name for path in folder.iterdir()) == ["blip_laion_cc_sbu_558k.json", "images"]
    assert "vlmrun download llava_558k" not in checked.stderr
    assert "vlmrun download llava_mix665k" in checked.stderr


def test_parts_of_an_archive_are_read_in_order_and_a_top_folder_is_dropped(download, tmp_path):
    whole = tarred(*(f"images/{number}.png" for number in range(50)))
    third = len(whole) // 3
    parts = {
        f"finetune/images.tar.gz.part-{name}": whole[place * third : (place + 1) * third if place < 2 else None]
        for place, name in enumerate(("aa", "ab", "ac"))
    }
    with serve(
        Hub({BUNNY: {"finetune/bunny_695k.json": b"[]", "pretrain/images.tar.gz.part-aa": b"x", **parts}})
    ) as hub:
        done = download(hub, "bunny_695k")
    assert done.returncode == 0, done.stderr
    images = tmp_path / "data" / "bunny" / "finetune" / "images"
    assert len(list(images.glob("*.png"))) == 50


def test_a_zip_in_parts_is_one_and_its_digest_is_no_part(download, tmp_path):
    whole = zipped(**{f"images__{number}.png": str(number) for number in range(40)})
    size = len(whole) // 11
    parts = {
        f"finetune/images.zip.{place}": whole[place * size : (place + 1) * size if place < 11 else None]
        for place in range(12)
    }
    others = {"finetune/images.zip.md5": b"0", "finetune/images.zip.sha256": b"0"}
    with serve(Hub({BUNNY: {"finetune/bunny_695k.json": b"[]", **parts, **others}})) as hub:
        done = download(hub, "bunny_695k")
        asked = {path for _, path, _ in hub.asked}
    assert done.returncode == 0, done.stderr
    images = tmp_path / "data" / "bunny" / "finetune" / "images"
    assert {path.name: path.read_text() for path in images.iterdir()} == {f"{n}.png": str(n) for n in range(40)}
    assert not [path for path in asked if path.endswith(("md5", "sha256"))]


def test_a_file_without_a_digest_is_refused(download, tmp_path):
    with serve(Hub({CLIP: model()}, without_digest={"model.safetensors", "config.json"})) as hub:
        done = download(hub, "openai/clip-vit-large-patch14-336")
    assert done.returncode == 4
    assert "no ETag to know it by" in done.stderr
    assert not list((tmp_path / "hf").rglob("*unknown*"))


def test_a_folder_that_cannot_be_written_is_not_taken_for_the_network(download, tmp_path):
    (tmp_path / "data").write_text("a file where the folder would be")
    files = {"blip_laion_cc_sbu_558k.json": b"[]", "images.zip": zipped(a__1="png")}
    with serve(Hub({CAPTIONS: files})) as hub:
        done = download(hub, "llava_558k")
    assert done.returncode == 3
    assert "cannot be written" in done.stderr
    assert "cannot be reached" not in done.stderr


def test_what_came_damaged_is_not_taken_for_the_network(download, tmp_path):
    with serve(Hub({CLIP: model()}, damages={"model.safetensors"})) as hub:
        done = download(hub, "openai/clip-vit-large-patch14-336")
    assert done.returncode == 4
    assert "model.safetensors came damaged" in done.stderr
    assert "cannot be reached" not in done.stderr


def test_a_full_disk_is_said(monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    item = Model("openai/clip-vit-large-patch14-336")
    monkeypatch.setattr(fetch.transfer, "get", full)
    monkeypatch.setattr(fetch.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        fetch.fetch(item, fetch.Listing({"config.json": 2}, "main", "", gated=False))
    archive = tmp_path / "images.tar"
    archive.write_bytes(tarred("images/a.png"))
    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(DataError, match="free space"):
        unpack([archive], tmp_path / "images")


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=5), st.data())
def test_parts_are_read_as_the_file_that_was_split(tmp_path_factory, whole, cuts, data):
    folder = tmp_path_factory.mktemp("parts")
    ends = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    files = [folder / str(number) for number in range(len(ends) - 1)]
    for number, file in enumerate(files):
        file.write_bytes(whole[ends[number] : ends[number + 1]])
    with io.BufferedReader(Parts(files), buffer_size=4) as read:
        for start in data.draw(st.lists(st.integers(0, 70), max_size=4)):
            read.seek(start)
            assert read.read(7) == whole[start : start + 7]
        read.seek(0)
        assert read.read() == whole


@pytest.mark.parametrize("archive", [tarred("images/a.png", "../../out.png"), tarred("images/a.png", link="/etc")])
def test_an_archive_that_names_places_outside_is_refused(download, tmp_path, archive):
    with serve(Hub({BUNNY: {"finetune/bunny_695k.json": b"[]", "finetune/images.tar.gz": archive}})) as hub:
        done = download(hub, "bunny_695k")
    assert done.returncode == 3
    assert "cannot be unpacked" in done.stderr
    assert not list(tmp_path.rglob("out.png"))
    assert not (tmp_path / "data" / "bunny" / "finetune" / "images").exists()
    assert not (tmp_path / "data" / "bunny" / "finetune" / "bunny_695k.json").exists(), "check would take it for whole"


def test_a_listing_that_leaves_its_repository_is_refused(download, tmp_path):
    with serve(Hub({BUNNY: {"../../../bunny_695k.json": b"[]"}})) as hub:
        done = download(hub, "bunny_695k")
    assert done.returncode == 3
    assert "outside of its repository" in done.stderr
    assert not list(tmp_path.rglob("bunny_695k.json"))


def test_a_gated_model_says_what_to_do_first(download):
    name = "models/meta-llama/Meta-Llama-3-8B-Instruct"
    with serve(Hub({name: model()}, gated={name})) as hub:
        done = download(hub, "meta-llama/Meta-Llama-3-8B-Instruct")
        checked = download(hub, "+recipe=bunny_llama3_pretrain", verb="check", offline="1")
    assert done.returncode == 4
    for said in (done.stderr, checked.stderr):
        assert "hf auth login" in said
        assert "accept its license" in said


def test_without_network_the_error_says_so(download):
    done = download(Hub({}, address="http://127.0.0.1:9"), "llava_558k")
    assert done.returncode == 3
    assert "the hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    told = download(Hub({}, address="http://127.0.0.1:9"), "llava_558k", offline="1")
    assert "HF_HUB_OFFLINE is set" in told.stderr


def test_names_that_the_hub_does_not_have(download):
    nowhere = Hub({}, address="http://127.0.0.1:9")
    near = download(nowhere, "llava_558")
    assert near.returncode == 2
    assert "did you mean 'llava_558k'?" in near.stderr
    drawn = download(nowhere, "shapes_captions")
    assert drawn.returncode == 2
    assert "made by vlmrun" in drawn.stderr
    assert download(nowhere, "smoke").stdout.startswith("nothing to fetch")
