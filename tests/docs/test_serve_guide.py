"""The guide of the server is true: its first command is started, and its curl commands and Python code are run."""

import base64
import io
import json
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.serving import serving
from vlmrun.cli.serve import _parser

pytestmark = pytest.mark.slow
GUIDE = (ROOT / "docs" / "guides" / "serve.md").read_text()
URL = "http://127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def server(tiny_run, tmp_path_factory):
    first = next(line for block in blocks("sh") for line in block.splitlines() if line.startswith("vlmrun serve"))
    with serving(tmp_path_factory.mktemp("guide"), *shlex.split(first)[2:], f"--output={tiny_run.output}") as server:
        yield server


def test_the_curl_commands(server):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (220, 30, 30)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    commands = [c for block in blocks("sh") for c in re.split(r"\n(?=curl)", block.strip()) if c.startswith("curl")]
    assert len(commands) >= 6
    for command in commands:
        text = command.replace(URL, server.url).replace("IMAGE", image)
        done = subprocess.run(["bash", "-c", f"{text} -sSf"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (command, done.stderr)
        if "stream" in command:
            assert done.stdout.endswith("data: [DONE]\n\n")
        elif "/metrics" not in command:
            assert json.loads(done.stdout)


def test_the_python_code(server):
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code.replace(URL, server.url)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_command_is_understood():
    for block in blocks("sh"):
        for line in block.splitlines():
            if line.startswith("vlmrun serve"):
                _parser().parse_args(shlex.split(line)[2:])
