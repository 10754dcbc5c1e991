"""The page of a judge's reviews: one static file, nothing fetched, usable with the keyboard alone."""

from __future__ import annotations

from typing import Any

from vlmrun.report import html


def page(data: dict[str, Any]) -> str:
    """The page's HTML; its script draws Markdown from text nodes, so an answer is never read as HTML.

    Args:
        data: what `review.page_data` gives.
    """
    return str(html.render("review", data=data)) + "\n"
