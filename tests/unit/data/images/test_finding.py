"""Where images are looked for, what their names may be, and what is said about those that are not there."""

import os
import socket
import stat
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmrun.data.images import finding
from vlmrun.data.images.finding import ImageFolder, file_at, find_image
from vlmrun.data.images.loading import load_image
from vlmrun.errors import DataError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    (folder / "Train").mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(folder / "Train" / "Cat.png")
    return folder


def problem(root, name, **options):
    with pytest.raises(DataError) as error:
        find_image(root if isinstance(root, ImageFolder) else ImageFolder(root), name, "f.json[3]", **options)
    (found,) = error.value.problems
    assert "f.json[3]" in found.where
    return found


@pytest.fixture
def snapshot(tmp_path):
    """A download of the hub: names link to blobs beside the snapshots."""
    blobs, images = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "r1" / "images"
    blobs.mkdir(parents=True)
    images.mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(blobs / "b10b", "PNG")
    (images / "card.png").symlink_to("../../../blobs/b10b")
    return images


def test_links_may_lead_to_further_roots(snapshot):
    blobs = snapshot.parents[2] / "blobs"
    found = problem(snapshot, "card.png")
    assert "is outside the image folder" in found.what
    assert "link to" in found.what
    assert found.fix.endswith(f"data.<name>.image_roots=[{blobs}]")
    assert find_image(ImageFolder(snapshot, (blobs,)), "card.png").path.resolve() == blobs / "b10b"
    (snapshot.parents[2] / "secret.png").touch()
    (snapshot / "away.png").symlink_to("../../../secret.png")
    assert "is outside" in problem(ImageFolder(snapshot, (blobs,)), "away.png").what
    (snapshot / "folder").symlink_to("../../..")
    assert "is outside" in problem(ImageFolder(snapshot, (blobs,)), "folder/secret.png").what


def test_a_root_that_is_itself_a_link_is_no_way_out(snapshot, tmp_path):
    (tmp_path / "here").symlink_to(snapshot)
    assert "is outside" in problem(tmp_path / "here", "card.png").what


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=20))
def test_a_name_is_found_in_the_unicode_form_that_the_disk_has(name):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        forms = {unicodedata.normalize(form, f"x{name}.png") for form in ("NFC", "NFD")}
        on_disk = min(forms)
        try:
            Path(folder, on_disk).touch()
        except OSError:  # longer than a file system takes
            return
        for form in forms:
            assert find_image(ImageFolder(Path(folder)), form).path.name == on_disk


def test_folders_and_files_may_be_of_different_unicode_forms(root):
    folder, file = unicodedata.normalize("NFD", "한글"), unicodedata.normalize("NFC", "강아지.png")
    (root / folder).mkdir()
    (root / folder / file).touch()
    for form in ("NFC", "NFD"):
        assert find_image(ImageFolder(root), unicodedata.normalize(form, "한글/강아지.png")).path.name == file


def test_a_file_that_has_the_very_name_is_preferred(root):
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    for name in (composed, decomposed, "Train\\Cat.png"):
        (root / name).touch()
        assert find_image(ImageFolder(root), name).path == root / name


def test_backslashes_are_slashes_where_no_file_has_them(root):
    assert find_image(ImageFolder(root), "Train\\Cat.png").path == root / "Train" / "Cat.png"
    (root.parent / "secret.png").touch()
    assert "is outside" in problem(root, "..\\secret.png").what


@pytest.mark.parametrize("name", ["train/cat.png", "TRAIN/CAT.PNG", "Train/cat.PNG", "train\\Cat.png"])
def test_another_letter_case_is_named_but_not_taken(root, name):
    assert problem(root, name).fix == "did you mean 'Train/Cat.png'?"
    assert "did you mean" not in problem(root, name, suggesting=False).fix


def test_names_that_start_one_folder_higher(root):
    assert problem(root / "Train", "Train/Cat.png").fix.endswith(f"data.<name>.images={root}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://example.org/a.png", "is an address"),
        ("s3://bucket/a.png", "is an address"),
        ("data:image/png;base64," + "iVBORw0K" * 200, "is a data URL"),
        ("iVBORw0K" * 200, "looks like base64"),
        ("/9j/4AAQ" * 200, "base64|outside|too long"),
    ],
)
def test_what_is_no_file_name_is_called_what_it_is(root, name, words):
    found = problem(root, name)
    assert any(word in found.what for word in words.split("|"))
    assert len(found.what) + len(found.where) < 400  # and not the whole image


def test_a_link_to_nothing(root):
    (root / "gone.png").symlink_to(root / "blob")
    assert "is a link to" in problem(root, "gone.png").what


def _special(root, kind):
    path = root / "odd.png"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        here = Path.cwd()
        os.chdir(root)  # addresses of sockets are short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("odd.png")
        os.chdir(here)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket"])
def test_what_is_no_regular_file_is_called_what_it_is_and_never_waited_for(root, kind):
    path = _special(root, kind)
    assert problem(root, "odd.png").what == f"image 'odd.png' is {kind}, not an image file"
    for ask in (load_image, file_at):
        with pytest.raises(DataError, match=f"is {kind}, not an image file"):
            ask(path)
    if kind == "a named pipe":  # put there after it was looked up
        with pytest.raises(DataError, match="is a named pipe"):
            finding.ImageFile(path).opened()


def test_a_device_is_called_one():
    with pytest.raises(DataError, match="is a device"):
        load_image(Path("/dev/zero"))
    assert stat.S_ISCHR(Path("/dev/zero").stat().st_mode)


def test_a_file_that_the_user_names_is_suggested_by_its_nearest_name(root):
    with pytest.raises(DataError, match=r"did you mean 'Cat\.png'"):
        load_image(root / "Train" / "Cot.png")
