"""`vlmrun init`: what it makes runs, and the commands it prints do what they say."""

import json
import shlex

import pytest
import yaml
from PIL import Image

from vlmrun import artifact

TINY = ("stage.pretrain.max_steps=2", "stage.pretrain.save_steps=2")


@pytest.fixture
def own(tmp_path):
    """A folder with images, captions and conversations."""
    (tmp_path / "pictures").mkdir()
    captions, talks = [], []
    for number in range(16):
        name = f"{number}.png"
        Image.new("RGB", (24, 24), (number * 15, 40, 200)).save(tmp_path / "pictures" / name)
        said = {"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "blue"}
        captions.append({"id": name, "image": name, "conversations": list(said)})
        asked = {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "yes"}
        talks.append({"id": name, "image": name, "conversations": [*said, *asked]})
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (tmp_path / "package.json").write_text('{"name": "something else"}')
    return tmp_path


def commands(done, cwd):
    """The commands printed, and the folder they are meant for."""
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.partition("next:\n")[2].splitlines()]
    if lines[0][0] == "cd":
        cwd = cwd / lines.pop(0)[1]
    assert all(line[0] == "vlmrun" for line in lines)
    return [line[1:] for line in lines], cwd


@pytest.mark.slow
def test_from_an_empty_folder_the_printed_command_runs(vlmrun, tmp_path):
    (run,), folder = commands(vlmrun("init", "mine"), tmp_path)
    names = ("captions", "instruct", "test")
    small = [f"data.shapes_{name}.prepare.n_{part}=24" for name in names for part in ("train", "test")]
    few = [*TINY, "stage.instruct.max_steps=2", "stage.evaluate.max_samples=4"]
    done = vlmrun(*run, *small, *few, cwd=folder)
    assert done.returncode == 0, done.stderr
    stages = {path.name.rpartition("-")[0] for path in (folder / "outputs" / "stages").iterdir()}
    assert stages == {"shapes", "pretrain", "instruct", "evaluate"}
    assert (folder / ".gitignore").read_text().startswith("/outputs/")


@pytest.mark.slow
def test_data_that_is_there_is_found_and_trained_on(vlmrun, own):
    done = vlmrun("init", ".", cwd=own)
    assert "my_captions: 16 captions in captions.json, images in pictures\n" in done.stdout
    assert "my_talks: 16 conversations in talks.jsonl, images in pictures\n" in done.stdout
    assert "package" not in done.stdout
    (run,), folder = commands(done, own)
    trained = vlmrun(*run, *TINY, "stage.instruct.max_steps=2", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    for stage, data in (("pretrain", "my_captions"), ("instruct", "my_talks")):
        (path,) = (own / "outputs" / "stages").glob(f"{stage}-*")
        assert artifact.read(path) is not None
        assert list(json.loads((path / "job.json").read_text())["data"]) == [data]


def test_conversations_alone_start_from_the_shapes(vlmrun, own):
    done = vlmrun("init", "talks", "--data", "talks.jsonl", "--images", "pictures", cwd=own)
    (run,), folder = commands(done, own)
    checked = vlmrun("check", *run, cwd=folder)
    assert checked.returncode == 0, checked.stderr
    assert "train connector (full) on shapes_captions" in checked.stdout
    assert "on my_talks" in checked.stdout


def test_a_published_recipe_takes_the_data_in_place_of_its_own(vlmrun, own):
    done = vlmrun("init", "big", "--recipe", "llava15_7b_lora", "--data", "captions.json", "talks.jsonl", cwd=own)
    (download, check, run), folder = commands(done, own)
    composed = vlmrun(*run, "--cfg", "job", cwd=folder)
    assert composed.returncode == 0, composed.stderr
    assert "llava_558k" not in composed.stdout
    assert "\nname: big\n" in f"\n{composed.stdout}"
    # Only weights are missing; the fix names what the other printed command fetches.
    checked = vlmrun(*check, cwd=folder)
    assert checked.returncode == 2
    assert "data." not in checked.stderr
    assert "vlmrun download lmsys/vicuna-7b-v1.5" in checked.stderr
    listed = vlmrun(*download, cwd=folder, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "lmsys/vicuna-7b-v1.5 (llm)" in listed.stdout
    assert "LLaVA-Pretrain" not in listed.stdout


def test_data_that_are_not_given_stay_those_of_the_recipe(vlmrun, own):
    done = vlmrun("init", "half", "--recipe", "llava15_7b", "--data", "talks.jsonl", cwd=own)
    (*_, run), folder = commands(done, own)
    checked = vlmrun("check", *run, cwd=folder)
    assert "vlmrun download llava_558k" in checked.stderr
    assert "mix665k" not in checked.stderr


def test_files_of_equal_names_are_entries_of_their_own(vlmrun, own):
    paths = []
    for folder, n_records in (("a", 5), ("b", 7), ("c", 9)):
        (own / folder).mkdir()
        paths.append(f"{folder}/train{'_2' if folder == 'c' else ''}.json")
        (own / paths[-1]).write_text(json.dumps(json.loads((own / "captions.json").read_text())[:n_records]))
    paths = [paths[2], *paths[:2]]  # the name that a number would give is taken
    done = vlmrun("init", "x", "--data", *paths, "--images", "pictures", cwd=own)
    (run,), folder = commands(done, own)
    config = yaml.safe_load(vlmrun(*run, "--cfg", "job", cwd=folder).stdout)
    used = config["stage"]["pretrain"]["data"]
    assert used == ["my_train_2", "my_train", "my_train_3"]
    assert [config["data"][name]["annotations"] for name in used] == [str(own / path) for path in paths]
    twice = vlmrun("init", "y", "--data", "a/train.json", "./a/train.json", "--images", "pictures", cwd=own)
    assert twice.returncode == 3
    assert "given twice" in twice.stderr
    assert not (own / "y").exists()


def test_nothing_is_overwritten(vlmrun, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own")
    (tmp_path / "mine" / ".gitignore").symlink_to("nowhere")
    done = vlmrun("init", "mine")
    assert done.returncode == 2
    assert "mine/README.md" in done.stderr
    assert "mine/.gitignore" in done.stderr
    assert (tmp_path / "mine" / "README.md").read_text() == "my own"
    assert not (tmp_path / "mine" / "conf").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["x", "--recipe", "llava15_7"], 2, "did you mean 'llava15_7b'?"),
        (["x", "--data", "nothing.json"], 3, "no such file"),
        (["x", "--data", "package.json"], 3, "fix"),
        (["x", "--data", "captions.json", "--images", "nowhere"], 3, "no such folder"),
        (["package.json"], 2, "is a file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(vlmrun, own, arguments, code, said):
    done = vlmrun("init", *arguments, cwd=own)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (own / "x").exists()


def test_images_that_are_not_found_are_asked_for(vlmrun, own):
    (own / "pictures").rename(own.parent / "elsewhere")
    done = vlmrun("init", "x", "--data", "captions.json", cwd=own)
    assert done.returncode == 3
    assert "--images FOLDER" in done.stderr
