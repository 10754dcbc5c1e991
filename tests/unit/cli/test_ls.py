"""`vlmrun ls`."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.unit import made
from tests.unit.report.test_run_table import Terminal
from vlmrun import artifact, store
from vlmrun.cli import ls as listing
from vlmrun.errors import CheckpointError
from vlmrun.report import lineage


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pretrain -> two merges -> average -> judge."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs"
    pretrain = made.train(root, "pretrain", [2.0, 1.0])
    merges = [
        made.stage(root, name, "merge", {"seconds": 1.0}, (pretrain,), minute=m) for m, name in ((2, "m1"), (1, "m2"))
    ]
    average = made.stage(root, "average", "average", {}, tuple(merges), minute=3)
    made.evaluate(root, "judge", [made.answer(0)], tmp_path, parents=(average,), minute=4)
    return root


@pytest.fixture
def unfinished(root: Path) -> Path:
    """A stage with checkpoints at steps 50 and 100, half of one at 150, and no artifact."""
    folder = store.folder(root, "lora", "00aa00aa00")
    for name in ("step-50", "step-100", ".tmp-step-150", "damaged-step-200"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    (folder / "job.json").write_text('{"stage": {"kind": "train"}}')
    return folder


def ls(root: Path, reference: str | None = None, *, as_json: bool = False, thorough: bool = False) -> None:
    words = [*([reference] if reference else []), *(["--json"] * as_json), *(["--verify"] * thorough)]
    assert listing.main([*words, "--output", str(root)]) == 0


def test_all_stages_are_listed_oldest_first(root, unfinished, capsys):
    ls(root)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "key", "kind", "created", "state", "steps", "loss", "accuracy", "size", "path"]
    assert [line.split()[0] for line in lines] == ["pretrain", "m2", "m1", "average", "judge", "lora"]
    assert " finished " in lines[0]
    assert lines[0].split()[6:8] == ["2", "1.0000"]
    assert "100.0%" in lines[4]
    assert lines[0].endswith("outputs/stages/pretrain-0000000365")
    assert "unfinished, at step 100" in lines[5]


def test_json_is_for_machines(root, unfinished, capsys):
    ls(root, as_json=True)
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries][-1] == "lora"
    assert entries[0]["summary"] == {"steps": 2, "loss": 1.0, "seconds": 12.5}
    assert entries[0]["n_bytes"] == sum(p.stat().st_size for p in Path(entries[0]["path"]).rglob("*") if p.is_file())
    assert (entries[-1]["state"], entries[-1]["checkpoint"], entries[-1]["kind"]) == ("unfinished", 100, "train")


def test_json_has_no_nan(tmp_path, capsys):
    made.stage(tmp_path, "pretrain", "train", {"loss": 1.0})
    path = next(tmp_path.rglob(artifact.NAME))
    path.write_text(path.read_text().replace('"loss":1.0', '"loss":NaN'))
    ls(tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)[0]["summary"] == {"loss": None}


def test_an_empty_root_lists_nothing(tmp_path, capsys):
    ls(tmp_path)
    assert capsys.readouterr().out == ""
    ls(tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_a_reference_shows_where_it_came_from(root, capsys):
    ls(root, "judge")
    out = capsys.readouterr().out
    tree = out[out.index("lineage\n") : out.index("summary\n")].splitlines()[1:-1]
    indents = [(len(line) - len(line.lstrip())) // 2 for line in tree]
    assert [line.split()[0] for line in tree] == ["judge", "average", "m1", "pretrain", "m2", "pretrain"]
    assert indents == [1, 2, 3, 4, 3, 4]
    assert "outputs/stages/pretrain-0000000365" in tree[3]
    assert "accuracy" in out
    assert "answers.jsonl" in out


def test_a_reference_as_json(root, capsys):
    ls(root, "average", as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["kind"]) == ("average", "average")
    assert [parent["name"] for parent in shown["lineage"]["parents"]] == ["m1", "m2"]
    assert shown["lineage"]["parents"][0]["parents"][0]["name"] == "pretrain"
    assert "weights/model.json" in shown["files"]


def test_a_shared_ancestor_is_unfolded_once(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    base = made.train(tmp_path, "base", [1.0])
    shared = made.stage(tmp_path, "shared", "train", parents=(base,))
    merges = tuple(made.stage(tmp_path, name, "merge", parents=(shared,)) for name in ("m1", "m2"))
    tree = lineage.trace(made.stage(tmp_path, "average", "average", parents=merges))
    plain, drawn = io.StringIO(), Terminal()
    lineage.write(tree, plain)
    lineage.write(tree, drawn)
    assert "└── " in drawn.getvalue()
    for text in (plain.getvalue(), drawn.getvalue()):
        assert text.count("(as above)") == 1
        assert text.count("shared-") == 2
        assert text.count("base-") == 1


def test_a_moved_root_still_knows_its_lineage(root, tmp_path):
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    tree = lineage.trace(store.find(moved, "average"))
    assert [parent.note for parent in tree.parents] == ["", ""]
    assert tree.parents[0].path.is_relative_to(moved)


def test_a_lost_or_changed_parent_is_noted(root):
    pretrain, average = store.find(root, "pretrain"), store.find(root, "average")
    shutil.rmtree(store.find(root, "m2"))
    shutil.rmtree(pretrain)
    made.stage(root, "pretrain", "train", key="0000000365")
    path = pretrain / artifact.NAME
    path.write_text(path.read_text().replace('"key":"0000000365"', '"key":"ffffffffff"'))
    first, second = lineage.trace(average).parents
    assert second.note == "(gone)"
    assert first.parents[0].note == "(another artifact is there now: ffffffffff)"
    path.write_text("{")
    assert lineage.trace(average).parents[0].parents[0].note == "(damaged)"


def flip(path: Path) -> None:
    """Changes a byte and hides it: size and time stay."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_thorough_finds_a_flipped_bit_after_listing_all(root, capsys):
    ls(root, thorough=True)
    assert capsys.readouterr().out.count("verified") == 5
    flip(store.find(root, "average") / "weights" / "model.json")
    ls(root)
    with pytest.raises(CheckpointError, match=r"average.*weights/model.json \(content changed\)"):
        ls(root, thorough=True)
    out = capsys.readouterr().out
    assert out.count("verified") == 4
    assert "damaged" in out
    with pytest.raises(CheckpointError, match="content changed"):
        ls(root, "average", thorough=True)
    ls(root, "judge", thorough=True)


def test_an_unreadable_artifact_does_not_hide_the_others(root, capsys):
    (store.find(root, "m1") / artifact.NAME).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ls(root)
    assert "average" in capsys.readouterr().out


def test_an_unknown_name_gets_the_nearest(root):
    with pytest.raises(CheckpointError, match="did you mean 'average'"):
        ls(root, "averge")


@pytest.mark.parametrize("reference", ["lora", "00aa00aa00", "lora-00aa00aa00", "outputs/stages/lora-00aa00aa00"])
def test_an_unfinished_stage_is_named_as_such(root, unfinished, reference):
    with pytest.raises(CheckpointError, match="'lora' is not finished: it stopped at step 100"):
        ls(root, reference)


def test_a_folder_begun_this_moment_is_listed(root, capsys):
    store.folder(root, "lora", "00aa00aa00").mkdir()
    ls(root)
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:2] == ["lora", "00aa00aa00"]
    assert last[-4:] == ["unfinished", "0", "B", "outputs/stages/lora-00aa00aa00"]
