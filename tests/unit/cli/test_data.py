import json
import subprocess
import sys

import pytest

from vlmrun.cli import app as cli
from vlmrun.cli import data as data_verbs
from vlmrun.config.paths import assets_dir

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a red star"}]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Overrides of a run on one's own data: three records, one of them too long, one bad."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "a.png")
    long = [TALK[0], {"from": "gpt", "value": "a red star " * 60}]
    records = [{"id": str(n), "image": "a.png", "conversations": talk} for n, talk in enumerate([TALK, long, TALK[:1]])]
    (tmp_path / "d.json").write_text(json.dumps(records))
    data = ["data=[llava]", "data.llava.annotations=d.json", "data.llava.images=images"]
    stage = ["stage=[pretrain]", "stage.pretrain.data=[llava]", "stage.pretrain.template=micro"]
    batch = ["stage.pretrain.global_batch=2", "stage.pretrain.micro_batch=1"]
    return ["model=micro", "name=mine", *data, *stage, *batch]


def test_show_marks_what_is_learnt(mine, capsys):
    assert cli.main(["data", "show", *mine, "0"]) == 0
    page = capsys.readouterr().out
    assert "[[a red star<|end|>]]" in page
    assert "<image: 16 tokens>" in page
    assert "What is it?" in page.partition("[[")[0]


def test_show_says_the_same_in_json_and_labels_are_the_marked_ids(mine, capsys):
    assert cli.main(["data", "show", *mine, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    learnt = [label for label in found["labels"] if label != -100]
    assert found["n_supervised"] == len(learnt) == sum(p["n_tokens"] for p in found["pieces"] if p["supervised"])
    assert found["n_tokens"] == len(found["input_ids"]) - 1 + found["images"][0]["tokens"]
    assert not found["truncated"]


def test_show_tells_what_is_cut_off(mine, capsys):
    assert cli.main(["data", "show", *mine, "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["truncated"]
    assert found["n_kept"] == found["max_length"] < found["n_tokens"]
    assert [piece["kept"] for piece in found["pieces"]][-1] is False
    assert cli.main(["data", "show", *mine, "1"]) == 0
    assert "<<CUT>>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["2"], 3, "the last question has no answer"),
        (["7"], 3, "there is no record 7: there are 3"),
        (["--stage", "pretrian"], 2, "did you mean 'pretrain'?"),
        (["model.llm.path=nowhere"], 4, "no model folder 'nowhere'"),
        (["data.llava.annotations=e.json"], 3, "did you mean 'd.json'?"),
    ],
)
def test_show_answers_mistakes_with_a_sentence(mine, capsys, words, code, told):
    assert cli.main(["data", "show", *mine, *words]) == code
    assert told in capsys.readouterr().err


def test_lint_of_a_run_looks_at_lengths_and_writes_a_report(mine, capsys, tmp_path):
    assert cli.main(["data", "lint", *mine, "--report", "report.jsonl"]) == data_verbs.FOUND_PROBLEMS
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["index"], line["id"]) for line in lines] == [("too_long", 1, "1"), ("empty", 2, "2")]
    page = capsys.readouterr().out
    assert "d.json[1] (id '1')" in page
    assert "2 problems in 3 records of 1 file" in page


def test_lint_of_a_file(mine, capsys):
    tokenizer = ["--tokenizer", str(assets_dir() / "micro-llm"), "--template", "micro"]
    assert cli.main(["data", "lint", "d.json", "--images", "images", "--limit", "1"]) == 0
    assert "ok: no problem in 1 records" in capsys.readouterr().out
    assert cli.main(["data", "lint", "d.json", *tokenizer, "--image-tokens", "16", "--max-length", "64"]) == 3
    assert "too_long" in capsys.readouterr().out
    assert cli.main(["data", "lint", "none.json"]) == 3


def test_lint_of_a_file_loads_no_torch(mine):
    code = "import sys; from vlmrun.cli.app import main; main(['data', 'lint', 'd.json'])"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_prepare_writes_llava_records(tmp_path, capsys):
    problem = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": "image.png"}
    problem |= {"lecture": "", "solution": "It is y.", "split": "train"}
    (tmp_path / "problems.json").write_text(json.dumps({"1": problem}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["1"]}))
    output = tmp_path / "made" / "sqa.json"
    words = ["data", "prepare", "scienceqa", "--base-dir", str(tmp_path), "--output", str(output)]
    assert cli.main(words) == 0
    (record,) = json.loads(output.read_text())
    assert record["conversations"][1]["value"].endswith("The answer is B.")
    assert cli.main(["data", "lint", str(output)]) == 0
    assert cli.main([*words, "--split", "trian"]) == 3
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_an_unknown_action_is_a_usage_error(capsys):
    assert cli.main(["data", "lnit"]) == 2
    assert "did you mean 'lint'?" in capsys.readouterr().err
    assert cli.main(["data"]) == 0
    assert "prepare scienceqa" in capsys.readouterr().out


def test_lint_notes_odd_images_and_ends_well(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGBA", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "d.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": TALK}]))
    assert cli.main(["data", "lint", "d.json", "--images", "images", "--report", "r.jsonl", "--decode", "all"]) == 0
    page = capsys.readouterr().out
    assert "image_transparent         1  transparent: composed on image_background" in page
    assert "ok: no problem in 1 records" in page
    (line,) = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert (line["kind"], line["index"]) == ("image_transparent", 0)


def test_lint_follows_links_to_the_roots_it_is_given(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for folder in ("images", "blobs"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "blobs" / "b.png")
    (tmp_path / "images" / "a.png").symlink_to("../blobs/b.png")
    (tmp_path / "d.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": TALK}]))
    assert cli.main(["data", "lint", "d.json", "--images", "images"]) == 3
    assert f"it is a link to {tmp_path}/blobs/b.png" in capsys.readouterr().out
    assert cli.main(["data", "lint", "d.json", "--images", "images", "--image-root", "blobs"]) == 0


def test_links_to_a_root_that_is_allowed_are_shown_and_a_missing_root_is_a_problem(mine, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "blobs").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "blobs" / "b.png")
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "blobs" / "b.png")
    assert cli.main(["data", "show", *mine, "0"]) == 3
    assert f"data.<name>.image_roots=[{tmp_path}/blobs]" in capsys.readouterr().err
    assert cli.main(["data", "show", *mine, "0", f"data.llava.image_roots=[{tmp_path}/blobs]"]) == 0
    assert cli.main(["check", *mine, "data.llava.image_roots=[nowhere]"]) == 2
    assert "no folder 'nowhere'" in capsys.readouterr().err
