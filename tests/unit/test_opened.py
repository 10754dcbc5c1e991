"""What `store.find` lets pass: unchanged artifacts, training checkpoints of this output root or those asked for."""

import json
import os
import shutil

import pytest

from vlmrun import artifact, store
from vlmrun.errors import CheckpointError


def _artifact(folder):
    (folder / "weights/llm").mkdir(parents=True)
    (folder / "weights/llm/model.safetensors").write_bytes(b"0123456789")
    (folder / "weights/model.json").write_text("{}")
    made = artifact.Artifact(
        name=folder.name, kind="train", key="0" * 10, run="test", created=artifact.now(), parents=[], summary={},
        environment={}, files=artifact.describe_files(folder, ("weights",)),
    )  # fmt: skip
    artifact.write_text(folder / artifact.NAME, made.model_dump_json())
    return folder


def _checkpoint(stage):
    step = stage / "checkpoints/step-4"
    step.mkdir(parents=True)
    (step / "MANIFEST.json").write_text(json.dumps({"step": 4, "files": {}, "facts": {}}))
    (stage / "job.json").write_text("{}")
    (step / "config.json").write_text("{}")
    return step


def test_a_checkpoint_from_elsewhere_is_read_only_when_it_is_asked_for(tmp_path):
    ours, theirs = _checkpoint(tmp_path / "outputs/stages/pretrain-1"), _checkpoint(tmp_path / "got/pretrain-1")
    root = tmp_path / "outputs"
    assert store.find(root, str(ours), training=True) == ours
    with pytest.raises(CheckpointError, match="--from training"):
        store.find(root, str(theirs), training=True)
    assert store.find(root, str(theirs), training=True, asked=True) == theirs
    (root / "stages/link").symlink_to(theirs.parent.parent)  # a link does not make it ours
    with pytest.raises(CheckpointError, match="--from training"):
        store.find(root, str(root / "stages/link/checkpoints/step-4"), training=True)


@pytest.mark.parametrize("within", ["", "weights"])
@pytest.mark.parametrize("change", ["content", "added", "removed"])
def test_a_changed_artifact_is_refused_wherever_it_is_named(tmp_path, within, change):
    folder = _artifact(tmp_path / "outputs/stages/merge-1")
    assert store.find(tmp_path / "outputs", str(folder / within)) == folder / within
    file = folder / "weights/llm/model.safetensors"
    if change == "content":
        file.write_bytes(b"9876543210")
        os.utime(file, ns=(1, 1))
    elif change == "added":  # which readers would take before the file that is listed
        file.with_name("model.safetensors.index.json").write_text("{}")
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match="is damaged: weights/llm"):
        store.find(tmp_path / "outputs", str(folder / within))


def test_a_copied_artifact_is_read_once(tmp_path, monkeypatch):
    folder = _artifact(tmp_path / "merge-1")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    read = []
    digest = artifact.digest
    monkeypatch.setattr(artifact, "digest", lambda path: read.append(path) or digest(path))
    for _ in range(2):
        store.require_unchanged(copy)
    assert len(read) == 2, "each file once"
    (copy / "weights/llm/model.safetensors").write_bytes(b"9876543210")
    with pytest.raises(CheckpointError, match="content changed"):
        store.require_unchanged(copy)
    (copy / ".verified.json").write_text("[broken")
    with pytest.raises(CheckpointError, match="content changed"):
        store.require_unchanged(copy)


def test_a_hub_id_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError, match="vlmrun download owner/name"):
        store.find(tmp_path, "owner/name")
