"""report.html: whole, safe and readable whatever is missing."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import made
from vlmrun.eval.vqa import is_match
from vlmrun.report import answers, run_page, svg

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Tags, attributes and texts; fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def styled(self, style: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if style in (attributes.get("class") or "").split()]


@pytest.fixture
def run(tmp_path: Path):
    """`run(rows)` -> outcomes of a train stage and its evaluation with these answers."""

    def build(rows, losses=None):
        root = tmp_path / "outputs"
        trained = made.train(root, "instruct", made.falling(40) if losses is None else losses)
        images = made.pictures(tmp_path / "images", 20)
        judged = made.evaluate(root, "judge", rows, images, parents=(trained,))
        return [made.outcome(trained, reused=True), made.outcome(judged)]

    return build


def written(tmp_path: Path, outcomes, title: str = "demo") -> tuple[str, Page]:
    path = run_page.write(tmp_path / "run", title, outcomes)
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text("utf-8")
    return text, Page(text)


def test_a_report_has_everything_in_one_file(run, tmp_path):
    rows = [made.answer(n, correct=n != 7) for n in range(20)]
    outcomes = run(rows)
    text, page = written(tmp_path, outcomes)
    assert not re.search(r"https?://|src=\"(?!data:)|url\(|@import", text), "something is loaded from elsewhere"
    for tag in ("script", "link", "a", "iframe", "object"):
        assert page.all(tag) == []
    said = " ".join(page.texts)
    for word in ("instruct", "judge", "95.0%", "50.0%", "31.0%", "colour", "expected: thing 7", "other 7", "2.13.0"):
        assert word in said, word
    pictures = [attributes["src"] for attributes in page.all("img")]
    assert len(pictures) == 12
    prefix = "data:image/png;base64,"
    assert base64.b64decode(pictures[0].removeprefix(prefix)).startswith(b"\x89PNG")
    assert len(page.styled("smooth")) == 1
    assert len(page.styled("wrong")) == 1, "the one wrong answer of twenty is shown"
    assert outcomes[0].artifact.files["metrics.jsonl"].sha256 in said


def test_text_from_outside_cannot_become_markup(run, tmp_path):
    nasty = "<script>alert(1)</script>"
    rows = [
        made.answer(n, answer=nasty, expected=nasty + '"', text="<img src=x onerror=alert(1)>", category="<b>&amp;")
        for n in range(3)
    ]
    _, page = written(tmp_path, run(rows), title="</title><script>")
    assert page.all("script") == []
    assert [a for a in page.all("img") if not (a["src"] or "").startswith("data:")] == []
    assert nasty in page.texts
    assert "</title><script>" in page.texts


def test_missing_pictures_and_files_are_said_not_raised(run, tmp_path):
    outcomes = run([made.answer(0, image="gone.png"), made.answer(1), made.answer(2, image=None)])
    _, page = written(tmp_path, outcomes)
    assert page.texts.count("image not found") == 1
    assert page.texts.count("no image") == 1
    for outcome in outcomes:
        for path in outcome.folder.iterdir():
            if path.is_file():
                path.unlink()
    _, page = written(tmp_path, outcomes)
    assert "no loss was recorded" in page.texts
    assert page.all("img") == []


def test_a_picture_outside_the_images_folder_is_not_read(run, tmp_path):
    made.pictures(tmp_path / "private", 1)
    outcomes = run([made.answer(0, image="../private/0.png")])
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "private" / "0.png")
    _, page = written(tmp_path, outcomes)
    assert "image not found" in page.texts
    outcomes[1].folder.joinpath("answers.jsonl").write_text(json.dumps(made.answer(0, image="link.png")))
    _, page = written(tmp_path, outcomes)
    assert "image not found" in page.texts


@pytest.mark.parametrize("content", [b"not an image", b"", b"\x89PNG" + b"\0" * 2_000_001])
def test_what_is_no_picture_or_too_large_is_not_embedded(run, tmp_path, content):
    outcomes = run([made.answer(0, image="odd.png")])
    (tmp_path / "images" / "odd.png").write_bytes(content)
    _, page = written(tmp_path, outcomes)
    assert page.all("img") == []
    assert any(text in ("not an image", "image not shown: more than 2 MB") for text in page.texts)


@pytest.mark.parametrize("torn", ['{"step": 1, "lo', "[1]", "null", '{"step": "x", "loss": 1}', "\udcff"])
def test_torn_or_foreign_lines_are_passed_over(run, tmp_path, torn):
    outcomes = run([made.answer(0)])
    with (outcomes[0].folder / "metrics.jsonl").open("a", errors="surrogateescape") as handle:
        handle.write(torn)
    with (outcomes[1].folder / "answers.jsonl").open("a", errors="surrogateescape") as handle:
        handle.write(torn)
    (outcomes[1].folder / "scores.json").write_text(torn, errors="surrogateescape")
    _, page = written(tmp_path, outcomes)
    assert len(page.all("img")) == 1
    assert len(page.styled("smooth")) == 1


@pytest.mark.parametrize("losses", [[], [1.0], [None, 2.0], [None], [math.nan, 1.0, math.inf, 0.5], [0.0, 0.0]])
def test_odd_curves_are_drawn_without_odd_numbers(run, tmp_path, losses):
    text, page = written(tmp_path, run([made.answer(0)], losses=losses))
    drawing = [value or "" for tag, attributes in page.tags if tag != "td" for value in attributes.values()]
    assert not [value for value in drawing if re.search(r"\b(nan|inf)\b", value)]
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    assert ("no loss was recorded" in text) == (not known)
    assert len(page.styled("dot")) == bool(known)


def test_a_run_of_one_stage_and_none_at_all(tmp_path):
    merge = made.stage(tmp_path / "outputs", "merge", "merge", {"seconds": 1.0})
    _, page = written(tmp_path, [made.outcome(merge)])
    assert page.all("svg") == []
    written(tmp_path, [])


def test_a_data_set_of_many_files_is_cut_short(tmp_path):
    folder = tmp_path / "outputs" / "stages" / "shapes-0123456789"
    made.pictures(folder / "data", 60)
    made.stage(tmp_path / "outputs", "shapes", "prepare", {"n_files": 60}, key="0123456789")
    text, _ = written(tmp_path, [made.outcome(folder)])
    assert "and 20 more, listed in artifact.json" in text


def test_a_report_replaces_the_old_one_whole(run, tmp_path):
    outcomes = run([made.answer(0)])
    written(tmp_path, outcomes, title="first")
    text, _ = written(tmp_path, outcomes, title="second")
    assert "first" not in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]


@given(n_right=st.integers(0, 40), n_wrong=st.integers(0, 40), count=st.integers(1, 15))
def test_chosen_answers_fill_the_places_and_include_wrong_ones(n_right, n_wrong, count):
    rows = [made.answer(n, correct=n < n_right) for n in range(n_right + n_wrong)]
    chosen = answers.choose(rows, count)
    assert len(chosen) == min(count, len(rows))
    assert len({row["question_id"] for row in chosen}) == len(chosen)
    shown_wrong = sum(not is_match(row) for row in chosen)
    if n_wrong and count > 1:
        assert shown_wrong > 0
    assert shown_wrong <= max(math.ceil(count / 3), count - n_right)


def test_chosen_answers_come_from_all_categories():
    rows = [made.answer(n) for n in range(100)]
    assert {row["category"] for row in answers.choose(rows, 8)} == set(made.CATEGORIES)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6))
def test_ticks_are_few_even_and_inside(low, span):
    found = svg.ticks(low, low + span)
    slack = 1e-6 * max(abs(low), span)
    assert len(found) <= 12
    assert all(low - slack <= value <= low + span + slack for value in found)


def test_a_long_curve_is_thinned():
    drawn = svg.curve([(step, 1.0 / step) for step in range(1, 20_001)], "long")
    assert len(drawn) < 25_000
    assert "20000" in drawn, "and still reaches its last step"


def test_evaluations_on_the_way_are_drawn_and_their_last_answers_shown(tmp_path):
    root = tmp_path / "outputs"
    trained = made.train(root, "instruct", made.falling(40))
    images = made.pictures(tmp_path / "images", 2)
    (trained / "job.json").write_text(json.dumps({"data": {"held": {"images": str(images)}}}))
    name = next(images.iterdir()).name
    scores = [{"step": step, "loss": 3.0 / step, "exact_match": 0.5} for step in (20, 40)]
    rows = [
        {"step": step, "id": "a", "data": "held", "image": name, "question": "what?", "expected": "red",
         "answer": f"<b>{step}</b>"}
        for step in (20, 40)
    ]  # fmt: skip
    (trained / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    (trained / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 99}]))
    text, page = written(tmp_path, [made.outcome(trained)])
    assert len(page.styled("tried-dot")) == 2
    assert "held-out loss 0.0750 at step 40" in page.texts
    assert "Answers during training" in page.texts
    assert "<b>40</b>" in page.texts, "escaped, and of the last evaluation"
    assert "<b>20</b>" not in page.texts
    assert "right: step 20: 50.0%, step 40: 50.0%" in text
    assert len(page.all("img")) == 1


def _search(root: Path, points: list[dict]) -> Path:
    folder = root / "stages" / f"search-{sum(map(ord, 'search')):010x}"
    folder.mkdir(parents=True)
    (folder / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return made.stage(root, "search", "search", {"accuracy": 0.9, "seconds": 3.0})


def _point(number: int, weights: list[float], score: float, **parameters: float) -> dict:
    return {"point": number, "weights": weights, "parameters": parameters, "score": score, "accuracy": score}


def test_a_search_is_a_curve_with_its_best_point_and_a_table(tmp_path):
    points = [
        _point(n, [1 - share, share], score) for n, (share, score) in enumerate([(0, 0.5), (0.42, 0.8), (1, 0.7)])
    ]
    text, page = written(tmp_path, [made.outcome(_search(tmp_path / "o", points))])
    assert "weight of the second model" in page.texts
    assert "0.58 / 0.42" in page.texts
    assert page.texts.count("best") == 1
    assert "score by weight of the second model, best 80.0% at 0.42" in text
    assert len(page.all("polyline")) == 1


@pytest.mark.parametrize("case", ["three models", "two numbers"])
def test_points_that_lie_on_no_line_are_bars(tmp_path, case):
    if case == "three models":
        points = [_point(0, [1, 0, 0], 0.2), _point(1, [0, 0.5, 0.5], 0.6)]
    else:
        points = [_point(n, [w, 1 - w], 0.5, density=d) for n, (w, d) in enumerate([(0, 0.1), (0, 0.2), (1, 0.1)])]
    torn = [*points, {"point": 9}]
    _, page = written(tmp_path, [made.outcome(_search(tmp_path / "o", torn))])
    assert page.all("polyline") == []
    assert len([bar for bar in page.all("rect") if bar["class"] == "accuracy"]) >= len(points)


def test_one_parameter_is_a_curve_and_no_point_is_nothing(tmp_path):
    points = [_point(n, [0.5, 0.5], 0.5 + n / 10, density=d) for n, d in enumerate([0.2, 0.5])]
    text, page = written(tmp_path, [made.outcome(_search(tmp_path / "o", points))])
    assert "score by density, best 60.0% at 0.5" in text
    _, page = written(tmp_path, [made.outcome(_search(tmp_path / "p", []))])
    assert "Search" not in page.texts
