"""The package as users get it: conf/ and the micro weights travel with it."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.conftest import ROOT
from vlmrun.config.compose import conf_dir


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and the wheel built from that sdist, not from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def shipped():
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}


def test_the_wheel_holds_conf_and_micro_weights(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {f"vlmrun/{name}" for name in shipped()} <= set(names)
    assert "vlmrun/assets/micro-llm/model.safetensors" in names
    assert "vlmrun/assets/micro-tower/model.safetensors" in names
    assert {"vlmrun/report/templates/report.html", "vlmrun/report/templates/review.js"} <= set(names)
    assert {f"vlmrun/report/static/{name}" for name in ("uPlot.iife.min.js", "uPlot.LICENSE", "site.js")} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "outputs"))]


def test_the_sdist_holds_what_the_tests_need(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert shipped() | {"Makefile", "constraints/cpu.txt", "tests/conftest.py", "scripts/make_micro.py"} <= names
    assert {"examples/first_steps.ipynb", "examples/emoji/prepare.py", "docker/Dockerfile.gpu", "SECURITY.md"} <= names


def test_the_distribution_is_not_called_vlmrun(built):
    assert built[0].name.startswith("vlmrun_trainer-")


def test_the_installed_wheel_runs_from_an_empty_folder(built, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(built[0])], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = "import vlmrun, vlmrun.config.compose as c; print(vlmrun.__file__, c.conf_dir())"
    done = subprocess.run([sys.executable, "-c", where], cwd=empty, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(site / "vlmrun" / "__init__.py"), str(site / "vlmrun" / "conf")]
    done = subprocess.run(
        [sys.executable, "-m", "vlmrun.cli", "check", "+recipe=smoke"],
        cwd=empty, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ok: smoke has no problems" in done.stdout


def test_an_editable_install_uses_the_checkouts_conf():
    assert conf_dir() == ROOT / "conf"


def test_the_micro_weights_are_small():
    weights = list((ROOT / "src" / "vlmrun" / "assets").rglob("*.safetensors"))
    assert len(weights) == 2
    assert sum(path.stat().st_size for path in weights) <= 4_000_000
