"""A benchmark's questions: rows of its file, the text that is asked, and the gold that belongs to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmrun.config.schema import BenchmarkConfig
from vlmrun.data.formats.values import text_or_number
from vlmrun.data.sample import IMAGE_TAG
from vlmrun.errors import DataError, Problem, suggest
from vlmrun.eval import gold, prompts, records
from vlmrun.eval.row import Row

_MAX_LISTED = 20


def read(config: BenchmarkConfig, *, need_gold: bool = True) -> list[Row]:
    """All questions, in the order of the file.

    Args:
        need_gold: refuse a set that has a metric and not what it compares with.

    Raises:
        DataError: for a file that cannot be read, with every bad row of it, and for gold that does not fit.
    """
    path = Path(config.annotations).expanduser()
    seen: Counter[str] = Counter()
    rows: list[Row] = []
    problems: list[Problem] = []
    for number, fields in enumerate(records.read(path, config.format)):
        where = f"{path}[{number}]"
        if not isinstance(fields, dict):
            problems.append(Problem("a row is not an object", where, "write {...} for every question"))
            continue
        try:
            made = list(_rows(fields, number, config, seen))
        except DataError as error:
            problems += [Problem(f"cannot be asked: {each.what}", where, each.fix) for each in error.problems]
            continue
        except (KeyError, IndexError, TypeError, ValueError) as error:
            fix = suggest(str(error).strip("'"), fields, noun="columns")
            problems.append(Problem(f"cannot be asked: {error}", where, fix))
            continue
        tagged = next((row for row in made if IMAGE_TAG in row.text), None)
        if tagged is not None:
            problems.append(Problem(f"{IMAGE_TAG} inside the text", where, "leave it out: one is put in front"))
        rows += made
    if problems:
        raise DataError(_first(problems, path))
    if not rows:
        raise DataError("no question in the file", str(path), "look at the file")
    return gold.join(rows, config) if need_gold else rows


def _first(problems: list[Problem], path: Path) -> list[Problem]:
    more = len(problems) - _MAX_LISTED
    return problems if more <= 0 else [*problems[:_MAX_LISTED], Problem(f"{more} more bad rows", str(path))]


def _rows(fields: dict[str, Any], number: int, config: BenchmarkConfig, seen: Counter[str]) -> Iterator[Row]:
    keys = config.keys
    own = number if keys.id is None else fields[keys.id]
    own_text = text_or_number(own, f"`{keys.id}`")
    picture = None if keys.image is None else fields.get(keys.image)
    if picture is not None and not isinstance(picture, str):
        raise ValueError(f"{keys.image} is not a file name")
    gold_fields = dict(fields)
    if keys.answer is not None and keys.answer in fields:
        gold_fields["answer"] = fields[keys.answer]
    held = fields.get(keys.category, "all") if keys.category else "all"
    category = text_or_number(held, f"`{keys.category}`")
    for asked in _asked(fields, config, picture is not None):
        seen[own_text] += 1
        again = seen[own_text]
        yield Row(
            id=own_text if again == 1 else f"{own_text}#{again}",
            own_id=own,
            text=asked.text + config.tail,
            stored=asked.text if config.prompt in ("mmbench", "rounds") else asked.text + config.tail,
            image=picture,
            category=category,
            fields={**gold_fields, **asked.more},
            letters=asked.letters,
        )


@dataclass(frozen=True)
class _Asked:
    text: str
    letters: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


def _asked(fields: dict[str, Any], config: BenchmarkConfig, has_image: bool) -> Iterator[_Asked]:
    """A row in the words that are asked: once, or once a rotation of its options."""
    if config.prompt in ("mmbench", "rounds"):
        for turn in prompts.mmbench(fields, all_rounds=config.prompt == "rounds"):
            options = dict(zip("ABCD", turn.options, strict=False))
            more: dict[str, Any] = dict(options)
            if config.prompt == "rounds" and fields.get("answer") in turn.letters:
                more["answer"] = "ABCD"[turn.letters.index(fields["answer"])]
            yield _Asked(turn.text, turn.letters, more)
    elif config.prompt == "mmmu":
        of_mmmu = prompts.mmmu(fields)
        yield _Asked(of_mmmu.text, tuple(of_mmmu.choices or ()), of_mmmu.choices or {})
    elif config.prompt == "cmmmu":
        of_cmmmu = prompts.cmmmu(fields)
        yield _Asked(of_cmmmu.text, tuple(of_cmmmu.choices or ()))
    elif config.prompt == "choices":
        yield _Asked(prompts.choices(fields))
    elif config.prompt == "science":
        value = text_or_number(fields["conversations"][0]["value"], "the question")
        yield _Asked(prompts.science(value, has_image=False, single=False))
    else:
        yield _Asked(text_or_number(fields[config.keys.text], f"`{config.keys.text}`"))
