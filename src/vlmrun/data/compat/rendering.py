"""The text of a conversation as the published codes write it, empty turns and all."""

from __future__ import annotations

from collections.abc import Sequence

from vlmrun.data.sample import Turn
from vlmrun.data.templates import Template


def render_two(turns: Sequence[Turn], template: Template) -> str:
    """An empty turn is its bare role and a colon: even the separator is lost."""
    user, assistant = roles_of(template)
    text = template.system
    for number, turn in enumerate(turns):
        role, end = (assistant, template.answer_end) if number % 2 else (user, template.user_end)
        text += f"{role}: {turn.text}{end}" if turn.text else f"{role}:"
    return text


def render_llama_2(turns: Sequence[Turn], template: Template) -> str:
    text = ""
    for number, turn in enumerate(turns):
        if not turn.text:
            continue  # an empty turn is left out whole
        if number % 2:
            text += f"{template.answer_start}{turn.text}{template.answer_end}"
        else:
            start = template.first_user_start if number == 0 else template.user_start
            text += f"{start}{turn.text}{template.user_end}"
    return text


def header_turn(turn: Turn, template: Template) -> str:
    """An empty turn is its bare header."""
    start = template.user_start if turn.role == "user" else template.assistant_start
    return start + (turn.text + template.answer_end if turn.text else "")


def roles_of(template: Template) -> tuple[str, str]:
    first = template.user_start if template.first_user_start is None else template.first_user_start
    return first.removesuffix(": "), template.assistant_start.removesuffix(":")


def separator_of(template: Template) -> str:
    return f"{template.user_end}{template.assistant_start} "
