"""Which engine is taken and why. What they do then: tests/integration/test_handing_over.py."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from vlmrun.cli.serve import _parser
from vlmrun.errors import LaunchError
from vlmrun.serve import handover

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A command named vllm."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").write_text(f"#!{sys.executable}\n")
    (tmp_path / "bin" / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(shutil.which('sh')).parent}")


def exported(folder, kind="llava"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


def chosen(models, *arguments):
    return handover.choose(_parser().parse_args(["x", *arguments]), models, {})


def test_the_reason_is_given(tmp_path, monkeypatch, installed):
    llava, phi = exported(tmp_path / "a"), exported(tmp_path / "b", "phi")
    assert chosen([("a", llava)])[0].name == "vLLM"
    assert chosen([("a", llava)], "--engine=own")[0] is None
    for models, arguments, reason in (
        ([("a", llava), ("b", llava)], (), "one model"),
        ([("b", phi)], (), "exported LLaVA folders only"),
        ([("a", llava)], ("--load-4bit",), "few bits need our engine"),
        ([("a", llava)], ("--web",), "--web need our engine"),
    ):
        assert reason in chosen(models, *arguments)[1]
        with pytest.raises(LaunchError, match="vLLM cannot serve this"):
            chosen(models, *arguments, "--engine=vllm")
    monkeypatch.setenv("PATH", "/nowhere")
    assert chosen([("a", llava)])[1] == "engine: our own (vLLM is not installed; SGLang is not installed)"


def test_sglang_where_vllm_is_not(tmp_path, installed):
    (tmp_path / "bin" / "vllm").rename(tmp_path / "bin" / "sglang")
    models = [("a", exported(tmp_path / "a"))]
    assert chosen(models)[0].name == "SGLang"
    options = _parser().parse_args(["x"])
    assert "one name" in handover.choose(options, models, {"b": "a"})[1]
    command = handover.OTHERS["sglang"].command(options, models[0], {}, 8000)
    assert command == [
        "sglang", "serve", "--model-path", str(tmp_path / "a"), "--host", "127.0.0.1", "--port", "8000",
        "--served-model-name", "a", "--dtype", "auto", "--max-running-requests", "8",
    ]  # fmt: skip


def test_the_command(tmp_path):
    options = _parser().parse_args(["x", "--dtype=fp32", "--batch=4"])
    command = handover.OTHERS["vllm"].command(options, ("m", tmp_path), {"gpt": "m"}, 8000)
    assert command == [
        "vllm", "serve", str(tmp_path), "--host", "127.0.0.1", "--port", "8000", "--served-model-name", "m", "gpt",
        "--dtype", "float32", "--max-num-seqs", "4",
    ]  # fmt: skip


def test_the_manifest_is_one():
    service, deployment = yaml.safe_load_all((ROOT / "launchers" / "k8s-serve.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]
    volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
