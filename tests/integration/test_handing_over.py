"""`--engine`: vLLM and SGLang are no packages for this machine; commands of their names start our own server instead.

What is tested is all that is ours: how they are chosen and started, that their answers are compared, and the key.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.pico import pico_loaded
from tests.serving import serving
from vlmrun.data.templates import TEMPLATES
from vlmrun.formats.base import How
from vlmrun.formats.convert import convert
from vlmrun.weights import native

pytestmark = pytest.mark.slow
_STAND_IN = """#!{python}
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
parser.add_argument({folder})
for name in ("host", "port", "dtype", "config", {limit}):
    parser.add_argument("--" + name)
parser.add_argument("--served-model-name", nargs="+")
given = parser.parse_args()
name, *more = given.served_model_name
key = os.environ.pop("VLLM_API_KEY", None)
if given.config:
    key = json.loads(pathlib.Path(given.config).read_text())["api-key"]
if key:
    os.environ["VLMRUN_API_KEY"] = key
folder = os.environ.get("STAND_IN_SERVES", given.folder)
aliases = ["--alias=" + other + "=" + name for other in more]
arguments = ["--engine=own", "--host=" + given.host, "--port=" + given.port, *aliases]
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its own "serving at" is not what is waited for
os.execv(sys.executable, [sys.executable, "-m", "vlmrun.cli", "serve", name + "=" + folder, *arguments])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Exports of two models."""
    folder = tmp_path_factory.mktemp("exports")
    for seed, name in enumerate(("export", "another")):
        loaded = pico_loaded(folder / f"parts{seed}", seed=seed)
        fields = TEMPLATES["micro"].to_dict()
        native.save(folder / f"native{seed}", loaded, template=fields, image_aspect="square", tensors={})
        convert(folder / f"native{seed}", folder / name, "hf_llava", How())
    return folder


def installed(folder, program):
    """PATH with a stand-in for a program."""
    (folder / "bin").mkdir()
    place, limit = ("folder", "max-num-seqs") if program == "vllm" else ("--model-path", "max-running-requests")
    named = repr(place) + ("" if program == "vllm" else ", dest='folder'")
    script = folder / "bin" / program
    script.write_text(_STAND_IN.format(python=sys.executable, folder=named, limit=repr(limit)))
    script.chmod(0o755)
    return os.pathsep.join((str(folder / "bin"), str(Path(shutil.which("sh")).parent)))


def test_an_export_is_handed_over(folders, tmp_path):
    path = installed(tmp_path, "vllm")
    with serving(tmp_path, f"m={folders / 'export'}", "--alias=gpt=m", VLMRUN_API_KEY="secret", PATH=path) as server:
        assert server.said[0].startswith("engine: vLLM, which is installed")
        assert any("by vLLM: three greedy answers are equal to ours" in line for line in server.said)
        body = {"model": "gpt", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
        url = f"{server.url}/v1/chat/completions"
        assert httpx.post(url, json=body).status_code == 401
        assert httpx.post(url, json=body, headers={"authorization": "Bearer secret"}).status_code == 200
    assert server.process.returncode is not None
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url + "/health")


def test_one_that_answers_otherwise_does_not_serve(folders, tmp_path):
    environment = {
        **os.environ,
        "PATH": installed(tmp_path, "sglang"),
        "STAND_IN_SERVES": str(folders / "another"),
        "VLMRUN_API_KEY": "secret",
    }
    done = subprocess.run(
        [sys.executable, "-m", "vlmrun.cli", "serve", f"m={folders / 'export'}", "--port=0"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert "engine: SGLang" in done.stderr
    assert "SGLang answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
