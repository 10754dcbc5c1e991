"""A run leaves a site behind; `vlmrun site` and `vlmrun watch` on it."""

from tests.conftest import run_vlmrun


def test_a_run_keeps_the_site(tiny_run):
    place = tiny_run.output / "site"
    assert "smoke/1" in (place / "index.html").read_text()
    page = (place / "runs/smoke/1.html").read_text()
    assert 'class="state finished"' in page, "written after the record was completed"
    assert len(list((place / "stages").glob("*.html"))) == 13


def test_watch_once(tiny_run):
    done = run_vlmrun("watch", "smoke", "--once", cwd=tiny_run.folder)
    assert done.returncode == 0, done.stderr
    assert "smoke/1: finished" in done.stdout
    assert "eval_average" in done.stdout
