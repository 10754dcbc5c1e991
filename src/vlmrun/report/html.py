"""Pieces of an HTML page: every text that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vlmrun.report.answers import Shown

_STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1b1b19; --quiet: #65645f; --line: #e4e3dd;
  --blue: #2a78d6; --green: #1a9a6c; --grey: #9b9a93; --pale: #c9c8c1; --good: #0a7a3d; --bad: #c22f2f; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #171716; --card: #20201f; --ink: #f1f0eb; --quiet: #a5a49d; --line: #383835;
  --blue: #4a94ea; --green: #2fb886; --grey: #8b8a84; --pale: #5c5b56; --good: #56c98a; --bad: #ff7d74; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 0 0 4px; font-weight: 600; }
p { margin: 4px 0 12px; } .quiet { color: var(--quiet); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.wide { overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 16px; }
.facts { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; } .facts .card { min-width: 130px; }
.facts b { display: block; font-size: 24px; line-height: 1.25; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--quiet); font-size: 13px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child td { border-bottom: 0; } .right { text-align: right; }
.heat { padding: 5px 12px !important; } td.path { font-size: 12.5px; color: var(--quiet); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 14px; }
.answer { display: flex; gap: 14px; border-left: 4px solid var(--good); overflow-wrap: anywhere; }
.answer.wrong { border-left-color: var(--bad); } .answer p { margin: 0 0 4px; line-height: 1.35; }
.answer .said { font-weight: 600; color: var(--good); } .answer.wrong .said { color: var(--bad); }
.answer img, .answer .none { width: 88px; height: 88px; flex: none; object-fit: contain; border-radius: 4px; }
.answer .none { display: grid; place-items: center; text-align: center; font-size: 12px;
  border: 1px dashed var(--pale); }
.small { image-rendering: pixelated; }
svg { display: block; margin: 0 auto; width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--ink); } svg .tick { fill: var(--quiet); font-size: 11px; }
svg .value { font-size: 11.5px; font-weight: 600; }
.grid { stroke: var(--line); } .axis { stroke: var(--grey); }
.raw, .smooth { fill: none; stroke: var(--blue); stroke-linejoin: round; }
.raw { opacity: .35; } .smooth { stroke-width: 2; }
.tried { fill: none; stroke: var(--green); stroke-width: 1.5; } .tried-dot { fill: var(--green); }
.dot { fill: var(--blue); } .raw-dot { fill: var(--blue); opacity: .35; }
.accuracy { fill: var(--blue); background: var(--blue); }
.accuracy_unseen { fill: var(--green); background: var(--green); }
.shuffled { fill: var(--grey); background: var(--grey); } .chance { fill: var(--pale); background: var(--pale); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 12px; font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
details { margin: 0 0 8px; } summary { cursor: pointer; font-weight: 600; } details > div { margin-top: 10px; }
"""


def document(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A page that needs nothing but itself."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="quiet">{escape(subtitle)}</p>\n'
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def section(title: str, note: str, *bodies: str) -> str:
    """A heading, a sentence under it, and what follows (already HTML); nothing at all without a body."""
    if not any(bodies):
        return ""
    quiet = f'<p class="quiet">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>{quiet}\n" + "\n".join(bodies) + "\n</section>"


def card(title: str, body: str, note: str = "") -> str:
    """A box with a heading; `body` is HTML."""
    quiet = f' <span class="quiet">{escape(note)}</span>' if note else ""
    heading = f"<h3>{escape(title)}{quiet}</h3>" if title else ""
    return f'<div class="card wide">{heading}{body}</div>'


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Large numbers with what they are."""
    boxes = (
        f'<div class="card"><b>{escape(value)}</b><span class="quiet">{escape(what)}</span></div>'
        for value, what in items
    )
    return f'<div class="facts">{"".join(boxes)}</div>'


def table(titles: Sequence[str], lines: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> str:
    """A table of texts.

    Args:
        styles: of each column: `right`, `path` (small), `heat` (a share like `97.5%`, tinted by its height), or empty.
    """
    styles = styles or [""] * len(titles)
    head = "".join(f'<th class="{style}">{escape(title)}</th>' for title, style in zip(titles, styles, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell(cell, style) for cell, style in zip(line, styles, strict=True)) + "</tr>\n"
        for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def legend(items: Sequence[tuple[str, str]]) -> str:
    """What colors mean: (style class, label)."""
    marks = (f'<span><i class="{style}"></i>{escape(label)}</span>' for style, label in items)
    return f'<div class="legend">{"".join(marks)}</div>'


def gallery(answers: Sequence[Shown]) -> str:
    """Images with question, expected and given answer."""
    return f'<div class="gallery">\n{"".join(_answer(item) for item in answers)}</div>' if answers else ""


def fold(title: str, body: str) -> str:
    """A part that is closed until somebody opens it; `body` is HTML."""
    return f'<details><summary>{escape(title)}</summary><div class="wide">{body}</div></details>'


def _cell(text: str, style: str) -> str:
    tint = ""
    if "heat" in style and text.endswith("%"):
        tint = f' style="background: rgba(64, 138, 226, {float(text[:-1]) / 250:.2f})"'
    return f'<td class="{style}"{tint}>{escape(text)}</td>'


def _answer(item: Shown) -> str:
    if item.picture is None:
        picture = f'<div class="none quiet">{escape(item.note)}</div>'
    else:
        small = ' class="small"' if item.small else ""
        picture = f'<img{small} src="{item.picture}" alt="image of the question">'
    mark, style = ("\u2713 right", "answer") if item.correct else ("\u2717 wrong", "answer wrong")
    kind = item.category + (", unseen" if item.unseen else "")
    return (
        f'<div class="card {style}">{picture}<div><p>{escape(item.question)}</p>'
        f'<p class="said">{escape(item.answer) or "(nothing)"}</p>'
        f'<p class="quiet">expected: {escape(item.expected)}</p>'
        f'<p class="quiet">{mark} &middot; {escape(kind)}</p></div></div>\n'
    )
