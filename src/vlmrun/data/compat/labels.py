"""The labels of the published codes, quirks included: for `stage.*.compat`, never by default.

Upstream finds what is supervised by adding up lengths of pieces tokenized on their own; where the sum is not the length
of the whole, all labels of the sample are dropped. Restated from the family's specification 2.6 to 2.8. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmrun.data import system
from vlmrun.data.compat.rendering import header_turn, render_llama_2, render_two, roles_of, separator_of
from vlmrun.data.compat.settings import HASHES, Project
from vlmrun.data.compat.text import UpstreamText, is_legacy
from vlmrun.data.encode import Encoded
from vlmrun.data.fits import kept_tokens
from vlmrun.data.sample import IMAGE_TAG, Sample, Turn
from vlmrun.data.templates import Template
from vlmrun.errors import ConfigError, DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN

_TWO = ("vicuna_v1", "llava_v1", "v1_mmtag")
_BUNNY = ("bunny", "bunny_llama", "vicuna_v1")
_LLAMA_2 = ("llama_2", "llava_llama_2", "mistral_instruct")
_HEADERS = ("mpt", "mpt_v0", "chatml_direct")


@dataclass(frozen=True)
class Masked:
    """What upstream makes of one sample.

    Args:
        mismatch: the two lengths (counted, actual) for whose difference all labels were dropped.
    """

    ids: list[int]
    labels: list[int]
    mismatch: tuple[int, int] | None = None


def encode(
    sample: Sample,
    template: Template,
    tokenizer: Any,
    project: Project,
    *,
    image_tokens: Sequence[int],
    max_length: int,
) -> Encoded:
    """Encodes a sample as `project` does; where that learns nothing of it, `n_supervised` is 0.

    Args:
        image_tokens: positions of each image of the sample after expansion.

    Raises:
        DataError: where upstream stops, or takes an image that belongs to another sample or to none.
    """
    masked = mask(sample, template, tokenizer, project, max_length=max_length)
    n_images = masked.ids.count(IMAGE_TOKEN)
    if n_images != len(sample.images):
        raise DataError(
            f"{n_images} {IMAGE_TAG} tags become images here, but the record has {len(sample.images)}",
            sample.where,
            "upstream would show another sample's image; fix the record",
        )
    kept = kept_tokens(masked.ids[:max_length], image_tokens, max_length)
    ids, labels = masked.ids[:kept], masked.labels[:kept]
    if IMAGE_TOKEN in masked.ids[kept:]:
        raise DataError(
            f"an image is beyond the maximum length of {max_length} tokens",
            sample.where,
            "raise model.max_length, or shorten the record",
        )
    n_supervised = sum(label != IGNORE for label in labels)
    return Encoded(ids, labels, kept < len(masked.ids), n_supervised)


def mask(sample: Sample, template: Template, tokenizer: Any, project: Project, *, max_length: int) -> Masked:
    """Token ids and labels as `project` makes them, before its collator cuts them.

    Args:
        max_length: the tokenizer's limit.

    Raises:
        DataError: where upstream stops with an error.
        ConfigError: when the project has no such template.
    """
    text = UpstreamText(tokenizer, bool(sample.images), max_length, old=project == "kollava")
    template = system.placed(template, sample)
    turns = sample.turns
    if sample.images and template.keep_question:
        turns = tuple(replace(turn, text=template.wrap_images(turn.text)) for turn in turns)
    masked = _style(template, project)(turns, template, text, project, sample.where)
    return replace(masked, labels=[IGNORE if label == IMAGE_TOKEN else label for label in masked.labels])


def _style(template: Template, project: Project) -> Callable[..., Masked]:
    name = template.name
    if name == "plain":
        return _plain
    if project == "bunny" and name in _BUNNY:
        return _bunny
    if project != "bunny":
        for names, style in ((_TWO, _two), (_LLAMA_2, _llama_2), (_HEADERS, _headers), (HASHES, _hashes)):
            if name in names:
                return style
        if project == "denseconnector" and name == "llama_3":
            return _headers
    raise ConfigError(
        f"{project} has no template {name!r} whose labels could be reproduced",
        "stage.*.compat.labels",
        "use one of that project's templates, or leave compat.labels null",
    )


def _plain(turns: Sequence[Turn], template: Template, text: UpstreamText, project: Project, where: str) -> Masked:
    if len(turns) != 2 or IMAGE_TAG not in turns[0].text:
        raise DataError("captions take one question with an image tag and one answer", where, "use another template")
    # Cut at images whatever the record says, and never truncated.
    cutting = replace(text, multimodal=True)
    ids = cutting.measured(IMAGE_TAG + turns[1].text + template.answer_end)
    labels = list(ids)
    _ignore(labels, 0, len(cutting.measured(IMAGE_TAG)))
    return Masked(ids, labels)


def _two(turns: Sequence[Turn], template: Template, text: UpstreamText, project: Project, where: str) -> Masked:
    whole = render_two(turns, template)
    corrected = project in ("llava", "denseconnector")
    rounds = whole.split(template.answer_end)
    found = []
    for number, (before, round_) in enumerate(_rounds(rounds, separator_of(template))):
        less = int(corrected and number > 0 and not _legacy(text.tokenizer, where))
        found.append((len(text.measured(before)) - 2 - less, len(text.measured(round_)) - less))
    return _count(text.whole(whole), found, text, start=1)


def _llama_2(turns: Sequence[Turn], template: Template, text: UpstreamText, project: Project, where: str) -> Masked:
    if not turns or not turns[0].text:
        raise DataError("the first question is empty", where, "upstream stops here as well: give it text")
    whole = render_llama_2(turns, template)
    rounds = _rounds(whole.split("</s>"), "[/INST] ")
    found = [(len(text.measured(before)) - 2, len(text.measured(round_))) for before, round_ in rounds]
    return _count(text.whole(whole), found, text, start=1)


def _headers(turns: Sequence[Turn], template: Template, text: UpstreamText, project: Project, where: str) -> Masked:
    if project == "kollava":  # its older code cuts every sample at `<image>` and truncates none here
        text = replace(text, multimodal=True)
    end = template.answer_end
    whole = template.system + "".join(header_turn(turn, template) for turn in turns)
    parts = whole.split(end)
    groups = [end.join(parts[:3]), *(end.join(parts[i : i + 2]) for i in range(3, len(parts), 2))]
    found = []
    for number, (before, round_) in enumerate(_rounds(groups, end + template.assistant_start)):
        n_before, n_round = len(text.measured(before)), len(text.measured(round_))
        if project == "kollava":
            n_round += len(text.measured(end))
        elif template.name == "llama_3":
            n_round += 1
        else:
            more = int(is_legacy(text.tokenizer) is True and (number > 0 or project == "denseconnector"))
            n_before, n_round = n_before - 1 + more, n_round + more
        found.append((n_before, n_round))
    return _count(text.whole(whole), found, text, start=0)


def _bunny(turns: Sequence[Turn], template: Template, text: UpstreamText, project: Project, where: str) -> Masked:
    whole = render_two(turns, template)
    # `bunny` is also the text of upstream's phi3, which asks the tokenizer; the others always count on a bos.
    bos = template.name != "bunny" or len(text.plain("")) > 0
    rounds = _rounds(whole.split(template.answer_end), separator_of(template))
    less, more = (2, 0) if bos else (1, 1)
    found = [(len(text.measured(before)) - less, len(text.measured(round_)) + more) for before, round_ in rounds]
    tokenizer = text.tokenizer
    hidden = len(found) if tokenizer.pad_token_id == tokenizer.eos_token_id else 0
    return _count(text.whole(whole), found, text, start=int(bos), hidden=hidden)


def _hashes(turns: Sequence[Turn], template: Template, text: UpstreamText, project: Project, where: str) -> Masked:
    """The `### ` path: only what stands between a human turn's mark and its end is hidden. No check of lengths."""
    user, assistant = roles_of(template)
    names = {"user": user, "assistant": assistant, "unknown": "unknown"}
    header = template.system.removesuffix("### ").rstrip() + "\n\n"
    said = [f"### {names[turn.role]}: {turn.text}\n" for turn in turns]
    ids = text.whole("".join([header, *said, "### "]))
    labels = list(ids)
    position = 0
    for number, piece in enumerate([header, *said]):
        length = len(text.measured(piece)) if text.multimodal else text.visible(text.truncated(piece))
        if number == 0:
            _ignore(labels, 0, length)
        elif turns[number - 1].role == "user":
            _ignore(labels, position + 2, position + length)
        position += length
    return Masked(ids, labels)


def _count(
    ids: list[int], rounds: Sequence[tuple[int, int]], text: UpstreamText, *, start: int, hidden: int = 0
) -> Masked:
    """Hides the instruction of every round and the rest; all, when the rounds do not add up to the whole.

    Args:
        rounds: lengths of (instruction, round).
        hidden: ends of rounds that were not counted in the whole because they equal the padding token.
    """
    labels = list(ids)
    _ignore(labels, 0, start)
    position = start
    for instruction, length in rounds:
        _ignore(labels, position, position + instruction)
        position += length
    _ignore(labels, position, len(labels))
    total = text.visible(ids)
    position -= hidden
    if position < text.max_length and position != total:
        return Masked(ids, [IGNORE] * len(ids), (position, total))
    return Masked(ids, labels)


def _rounds(rounds: Sequence[str], separator: str) -> list[tuple[str, str]]:
    """(up to and with the separator, the whole) of every round, ending at the first that has not exactly one."""
    found = []
    for round_ in rounds:
        parts = round_.split(separator)
        if not round_ or len(parts) != 2:
            break
        found.append((parts[0] + separator, round_))
    return found


def _legacy(tokenizer: Any, where: str) -> bool:
    found = is_legacy(tokenizer)
    if found is None:
        raise DataError(
            "upstream cannot count the second round of this sample: the tokenizer has no `legacy` setting",
            where,
            "set model.llm.legacy, or leave compat.labels null",
        )
    return found


def _ignore(labels: list[int], start: int, stop: int) -> None:
    """Python's slices, as upstream's: a negative bound counts from the end, one beyond it is the end."""
    for index in range(*slice(start, stop).indices(len(labels))):
        labels[index] = IGNORE
