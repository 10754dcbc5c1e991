"""Pieces of an HTML page, each a template of `templates/`, where every text that is not a piece itself is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlmrun.report.answers import Shown

_TEMPLATES = Environment(
    loader=PackageLoader("vlmrun.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {}  # keys in their order


def render(template: str, **values: Any) -> Markup:
    """A template of `templates/` with these values, which `{{ }}` and `join` escape unless they are Markup."""
    return Markup(_TEMPLATES.get_template(f"{template}.html").render(values))


def document(title: str, subtitle: str, sections: Sequence[Markup]) -> str:
    """A page that needs nothing but itself."""
    return str(render("report", title=title, subtitle=subtitle, sections=sections)) + "\n"


def section(title: str, note: str, *bodies: Markup) -> Markup:
    """A heading, a sentence under it, and what follows; nothing at all without a body."""
    return render("section", title=title, note=note, bodies=bodies) if any(bodies) else Markup()


def card(title: str, body: Markup, note: str = "") -> Markup:
    """A box with a heading."""
    return render("card", title=title, body=body, note=note)


def facts(items: Sequence[tuple[str, str]]) -> Markup:
    """Large numbers with what they are."""
    return render("facts", items=items)


def table(titles: Sequence[str], lines: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> Markup:
    """A table of texts.

    Args:
        styles: of each column: `right`, `path` (small), `heat` (a share like `97.5%`, tinted by its height), or empty.
    """
    styles = styles or [""] * len(titles)
    return render(
        "table",
        columns=list(zip(titles, styles, strict=True)),
        lines=[list(zip(line, styles, strict=True)) for line in lines],
    )


def legend(items: Sequence[tuple[str, str]]) -> Markup:
    """What colors mean: (style class, label)."""
    return render("legend", items=items)


def gallery(answers: Sequence[Shown]) -> Markup:
    """Images with question, expected and given answer."""
    return render("gallery", answers=answers) if answers else Markup()


def charts(cards: Sequence[Markup]) -> Markup:
    """Boxes side by side where there is room."""
    return render("charts", cards=cards)


def fold(title: str, body: Markup) -> Markup:
    """A part that is closed until the reader opens it."""
    return render("fold", title=title, body=body)


def note(text: str) -> Markup:
    """A sentence in small print."""
    return render("note", text=text)
