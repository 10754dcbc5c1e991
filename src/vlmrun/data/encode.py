"""Sample + template + tokenizer -> token ids and labels.

The text is cut at images only and every chunk is tokenized once. Labels follow from the characters each token covers,
never from counting the tokens of some other tokenisation. Free of torch: the tokenizer is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmrun.data import system, tokenizing
from vlmrun.data.fits import counted, kept_tokens, misfit
from vlmrun.data.images import grid
from vlmrun.data.sample import IMAGE_TAG, Sample, Turn
from vlmrun.data.templates import Piece, Template
from vlmrun.errors import CheckpointError, DataError
from vlmrun.ids import IGNORE, IMAGE_TOKEN


@dataclass(frozen=True)
class Encoded:
    """Token ids with one `IMAGE_TOKEN` per image; labels beside them, `IGNORE` where nothing is supervised.

    Args:
        spans: positions that each `IMAGE_TOKEN` stands for, where an image has one for each of its slices; empty: it
            has one, for all that its layout tells.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    n_supervised: int
    spans: tuple[int, ...] = ()


def encode(  # noqa: PLR0913 - what a sample is encoded with, each given by name
    sample: Sample,
    template: Template,
    tokenizer: Any,
    *,
    image_tokens: Sequence[int],
    max_length: int,
    blocks: Sequence[str] | None = None,
    relabel: Callable[[list[int]], list[int]] | None = None,
) -> Encoded:
    """Encodes a sample.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        image_tokens: positions that each `IMAGE_TOKEN` takes after expansion, in order.
        max_length: longest expanded sequence; what is beyond is cut off.
        blocks: text that stands for each image (`slices.blocks`), with an `IMAGE_TOKEN` for every tile.
        relabel: makes other labels, from the ids.

    Raises:
        DataError: when the template or the tokenizer cannot take this sample, the cut would go through or before an
            image, or nothing that is supervised remains.
    """
    if (wrong := misfit(sample, template)) is not None:
        raise DataError([wrong])
    pieces = system.placed(template, sample).render(sample.turns, images=bool(sample.images))
    ids, labels = tokenize(
        pieces, tokenizer, images=bool(sample.images), blocks=blocks, image_token=template.image_token
    )
    if relabel is not None:
        labels = relabel(ids)
    kept = kept_tokens(ids, image_tokens, max_length)
    if IMAGE_TOKEN in ids[kept:]:
        raise DataError(
            f"an image is beyond the maximum length of {max_length} tokens ({counted(image_tokens)})",
            sample.where,
            "raise model.max_length, or shorten the record",
        )
    truncated = kept < len(ids)
    ids, labels = ids[:kept], labels[:kept]
    n_supervised = sum(label != IGNORE for label in labels)
    if n_supervised == 0:
        raise DataError(
            f"no token of an answer is within the maximum length of {max_length} tokens",
            sample.where,
            "raise model.max_length, or shorten the record",
        )
    return Encoded(ids, labels, truncated, n_supervised, () if blocks is None else tuple(image_tokens))


def encode_prompt(
    turns: Sequence[Turn],
    template: Template,
    tokenizer: Any,
    *,
    images: bool = True,
    blocks: Sequence[str] | None = None,
) -> list[int]:
    """Token ids of the text up to where the next answer begins, one `IMAGE_TOKEN` per image (or tile).

    Args:
        images: false when there are none, so that `<image>` is ordinary text.
        blocks: as in `encode`.
    """
    pieces = template.prompt_pieces(turns, images=images)
    ids, _ = tokenize(pieces, tokenizer, images=images, blocks=blocks, image_token=template.image_token)
    return ids


def tokenize(
    pieces: Sequence[Piece],
    tokenizer: Any,
    *,
    images: bool = True,
    blocks: Sequence[str] | None = None,
    image_token: bool = False,
) -> tuple[list[int], list[int]]:
    """Ids and labels of a rendered conversation, before anything is cut off.

    Args:
        image_token: as the template's.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"tokenizer {type(tokenizer).__name__} cannot tell which characters a token covers",
            getattr(tokenizer, "name_or_path", ""),
            "save it as a fast tokenizer (tokenizer.json) beside the LLM",
        )
    tag = IMAGE_TAG if images else None
    if images and blocks is not None:
        pieces, tag = grid.in_place(pieces, blocks), grid.TILE
    ids: list[int] = []
    labels: list[int] = []
    behind = IGNORE  # the label that a piece asks for at the token behind it
    before = str(tokenizer.eos_token) if image_token else ""  # any special token tokenises what follows it alike
    for group in _groups(pieces):
        new_ids, new_labels = _tokenize(group, tokenizer, tag, before)
        if behind != IGNORE and new_labels:
            new_labels[0] = behind
        behind = tokenizer.convert_tokens_to_ids(group[-1].then) if group[-1].then else IGNORE
        ids += new_ids
        labels += new_labels
    return ids, labels


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that are tokenized together."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if not groups or piece.alone:
            groups.append([])
        groups[-1].append(piece)
    return groups


def _tokenize(pieces: Sequence[Piece], tokenizer: Any, tag: str | None, before: str) -> tuple[list[int], list[int]]:
    """Tokenises chunk by chunk, cut at `tag`, keeping the tokenizer's own beginning-of-text behavior on the first.

    Args:
        before: the special token that stands before every other chunk, and is not kept.
    """
    text = "".join(piece.text for piece in pieces)
    spans = _supervised_spans(pieces)
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    begins = not (pieces and pieces[0].alone)
    for number, chunk in enumerate([text] if tag is None else text.split(tag)):
        if number > 0:
            ids.append(IMAGE_TOKEN)
            labels.append(IGNORE)
            position += len(tag or "")
        behind = before if number else ""
        for token, begin, end in _tokens_of_chunk(chunk, tokenizer, behind, first=begins and number == 0):
            ids.append(token)
            learnt = begin >= 0 and _overlaps(position + begin, position + end, spans)
            labels.append(token if learnt else IGNORE)
        position += len(chunk)
    return ids, labels


def _tokens_of_chunk(chunk: str, tokenizer: Any, behind: str, *, first: bool) -> list[tuple[int, int, int]]:
    """Token ids with their character ranges; the tokenizer's own BOS, before the first chunk, has the range -1.

    Args:
        behind: a special token that stands before the chunk, and is left out.
    """
    backend = tokenizer.backend_tokenizer  # the tokenizer's own layers above it take longer than the work itself
    if backend.truncation or backend.padding:
        backend.no_truncation()
        backend.no_padding()
    # Some text, so that what is added before it differs from what is added after it.
    with tokenizing.refusals():
        found = backend.encode(behind + (chunk or "a"), add_special_tokens=first)
    tokens: list[tuple[int, int, int]] = []
    in_text = False
    for token, (begin, end), added in zip(found.ids, found.offsets, found.special_tokens_mask, strict=True):
        in_text = in_text or not added
        if not added and chunk:
            tokens.append((token, begin - len(behind), end - len(behind)))
        elif added and not in_text:
            # One added after the text (EOS) is left out: the template says where an answer ends.
            tokens.append((token, -1, -1))
    if len(tokens) > 1 and tokens[0][1] < 0 and tokens[1][0] == tokens[0][0]:
        del tokens[0]  # the template writes the beginning of the text itself: one is meant
    return tokens[1:] if behind else tokens


def _supervised_spans(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    spans, position = [], 0
    for piece in pieces:
        if piece.supervised:
            spans.append((position, position + len(piece.text)))
        position += len(piece.text)
    return spans


def _overlaps(begin: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a token shares a character with a span; one that covers none counts for the next."""
    end = max(end, begin + 1)
    return any(begin < stop and start < end for start, stop in spans)
