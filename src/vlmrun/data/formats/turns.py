"""Messages in any wording -> the turns of a sample: who may speak when, what must have text, where images go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmrun.data.formats import image_marks
from vlmrun.data.formats.values import is_blank
from vlmrun.data.sample import IMAGE_TAG, Rejected, Sample, Turn, move_image_tags
from vlmrun.errors import DataError, Problem


@dataclass(frozen=True)
class Talk:
    """What a record says, before it is checked.

    Args:
        first: number of the first turn's message: 1 behind a system message.
        problems: what is wrong already; it is reported together with what is found here.
    """

    images: list[str]
    turns: list[Turn]
    system: str | None = None
    first: int = 0
    problems: tuple[Problem, ...] = ()


def checked(talk: Talk, ignored: Sequence[str] = ()) -> Talk:
    """The same.

    Raises:
        DataError: for everything that keeps it from being trained.
    """
    _check_order(talk)
    wrong = [*talk.problems, *image_marks.refused(talk.turns, ignored, talk.system)]
    if IMAGE_TAG in (talk.system or ""):
        fix = f"write {IMAGE_TAG} in the question that the image belongs to"
        wrong.append(Problem(f"the system text contains {IMAGE_TAG}", fix=fix))
    if wrong:
        raise DataError(wrong)
    n_tags = sum(turn.text.count(IMAGE_TAG) for turn in talk.turns)
    if n_tags != len(talk.images):
        raise DataError(
            f"{n_tags} {IMAGE_TAG} tags in the text, but {len(talk.images)} images",
            fix=f"write {IMAGE_TAG} once for every image, where it belongs",
        )
    if not any(turn.supervised for turn in talk.turns if turn.role == "assistant"):
        raise DataError("no answer is trained: all say `loss: false`", fix="leave the record out")
    return talk


def rejection(id: str, source: tuple[str, int], error: DataError) -> Rejected:
    """A record with all that is wrong with it."""
    return Rejected(id, source, "; ".join(problem.what for problem in error.problems), error.problems[0].fix)


def to_sample(id: str, source: tuple[str, int], talk: Talk) -> Sample:
    """The sample of a talk."""
    return Sample(id, tuple(talk.images), tuple(talk.turns), source, system=talk.system)


def in_front(talk: Talk) -> Talk:
    """A single image's tag at the start of its question, as LLaVA trains it; several images keep their places."""
    if len(talk.images) != 1:
        return talk
    turns = [replace(turn, text=move_image_tags(turn.text)) if turn.role == "user" else turn for turn in talk.turns]
    return replace(talk, turns=turns)


def tagged(talk: Talk) -> Talk:
    """Tags before the first question where images are named and no text shows one."""
    if not talk.images or not talk.turns or any(IMAGE_TAG in turn.text for turn in talk.turns):
        return talk
    first = replace(talk.turns[0], text=f"{IMAGE_TAG}\n" * len(talk.images) + talk.turns[0].text)
    return replace(talk, turns=[first, *talk.turns[1:]])


def _check_order(talk: Talk) -> None:
    if not talk.turns:
        raise DataError("empty conversation: it has no question", fix="give it a question and an answer")
    for number, turn in enumerate(talk.turns):
        expected = "assistant" if number % 2 else "user"
        place = number + talk.first
        if turn.role != expected:
            raise DataError(
                f"roles out of order: message {place} is the {turn.role}'s, the {expected}'s was expected",
                fix="human and gpt take turns, human first",
            )
        if is_blank(turn.text):
            noun = "answer" if turn.role == "assistant" else "question"
            raise DataError(f"empty {noun} in message {place}", fix="give it text, or remove the pair of messages")
    if talk.turns[-1].role == "user":
        raise DataError("the last question has no answer", fix="add the answer, or remove the question")
