"""Expected answers from where each set keeps them, joined to its questions; whatever does not fit is refused.

Source: specification eval-and-serve 2.2, 2.4 to 2.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmrun.config.schema import BenchmarkConfig
from vlmrun.data.formats.values import text_or_number
from vlmrun.errors import DataError
from vlmrun.eval import metrics, records
from vlmrun.eval.metrics.base import groups
from vlmrun.eval.row import Row

_ID_KEYS = ("question_id", "questionId", "id", "index")

_ANY_OF = ("exact", "vqa", "anls", "relaxed", "contains")  # metrics with several right answers, under `answers`
_OWN_LISTS = ("mmmu", "cmmmu")  # metrics whose sets write several answers under `answer`

Fields = dict[str, Any]


def join(rows: Sequence[Row], config: BenchmarkConfig) -> list[Row]:
    """Questions with what their metric needs.

    Raises:
        DataError: when the gold cannot be read, or a question has none.
    """
    found = list(rows)
    if config.gold is not None:
        place = Path(config.gold).expanduser()
        if not place.exists():
            raise DataError("no expected answers here", str(place), "put the set's own file there, or set gold")
        added = _JOINS[config.join](found, place)
        found = [replace(row, fields={**row.fields, **(more or {})}) for row, more in zip(found, added, strict=True)]
        lost = [row.id for row, more in zip(rows, added, strict=True) if more is None]
        if lost:
            what = f"{len(lost)} questions have no expected answer, such as {', '.join(lost[:3])}"
            raise DataError(what, str(place), "use the gold and the question file of one release")
    return [_complete(row, config) for row in found] if config.metric else found


def _complete(row: Row, config: BenchmarkConfig) -> Row:
    fields = dict(row.fields)
    if isinstance(fields.get("answer"), list) and config.metric in _ANY_OF:
        fields.setdefault("answers", fields.pop("answer"))
    if fields.get("answers") is not None and not isinstance(fields["answers"], list | dict):
        fields["answers"] = [fields["answers"]]
    if isinstance(fields.get("answers"), list):
        fields["answers"] = [each.get("answer") if isinstance(each, dict) else each for each in fields["answers"]]
    _check_types(row, fields, config)
    metric = metrics.of(config.metric or "exact")
    any_of = config.metric not in metrics.METRICS or config.metric in _ANY_OF
    missing = [
        key
        for key in metric.needs
        if fields.get(key) is None and not (any_of and key == "answer" and fields.get("answers"))
    ]
    if missing:
        what = f"question {row.id} has no {' and no '.join(missing)}, which metric {config.metric} compares with"
        raise DataError(what, config.annotations, "set gold, keys.answer, or metric=null for a set without answers")
    wrong = metric.wrong(fields)
    if wrong is not None:
        raise DataError(
            f"question {row.id}: {wrong}",
            config.annotations,
            f"correct it, or another metric than {config.metric}",
        )
    return replace(row, fields=fields)


def _check_types(row: Row, fields: Fields, config: BenchmarkConfig) -> None:
    """Raises a DataError for an answer that is neither text nor a number: its Python name would be compared."""
    several = config.metric in _ANY_OF or config.metric in _OWN_LISTS
    for key in ("answer", "answers"):
        value = fields.get(key)
        if isinstance(value, list) and (several or key == "answers"):
            given = value
        else:
            given = [] if value is None else [value]
        try:
            for each in given:
                text_or_number(each, f"`{key}` of question {row.id}")
        except DataError as error:
            raise DataError([replace(each, where=config.annotations) for each in error.problems]) from error


def _by_id(rows: Sequence[Row], place: Path) -> list[Fields | None]:
    """A list of rows with an id, an object of rows by id, or SEED's and TextVQA's objects around such a list."""
    content = records.load(place)
    types = content.get("question_type") if isinstance(content, dict) else None
    names = {number: name for name, number in types.items()} if isinstance(types, dict) else {}
    table: dict[str, Fields] = {}
    for entry in records.in_container(content):
        key = next((str(entry[name]) for name in _ID_KEYS if name in entry), None) if isinstance(entry, dict) else None
        if key is not None:
            kind = names.get(entry.get("question_type_id"))
            table[key] = entry if kind is None else {**entry, "question_type": kind}
    return [table.get(str(row.own_id)) for row in rows]


def _pope(rows: Sequence[Row], place: Path) -> list[Fields | None]:
    """coco_pope_<category>.json, JSONL without ids of ours.

    The n-th question of a category has the n-th label, and both must name the same image.
    """
    labels: dict[str, list[Fields]] = {}
    for file in sorted(place.glob("coco_pope_*.json")):
        labels[file.stem.removeprefix("coco_pope_")] = list(records.read(file, "jsonl"))
    found: dict[str, Fields | None] = {}
    for category, part in groups(rows, lambda row: row.category).items():
        listed = labels.get(category, [])
        if len(listed) != len(part):
            what = f"category {category!r} has {len(part)} questions and {len(listed)} labels"
            raise DataError(what, str(place), "use the question file and the annotations of one release")
        for row, label in zip(part, listed, strict=True):
            if label.get("image") != row.image:
                what = f"question {row.id} is about {row.image}, its label about {label.get('image')}"
                raise DataError(what, str(place), "keep the order of both files")
            found[row.id] = {"answer": label["label"]}
    return [found.get(row.id) for row in rows]


def _mme(rows: Sequence[Row], place: Path) -> list[Fields | None]:
    """<category>/questions_answers_YN/<image>.txt, or the same without that folder: lines of question and answer."""
    truths = mme_truths(place)
    by_image: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for (category, file, question), answer in truths.items():
        by_image.setdefault((category, file), []).append((question, answer))
    found: list[Fields | None] = []
    for row in rows:
        category, _, rest = str(row.own_id).partition("/")
        file = rest.rsplit("/", 1)[-1].partition(".")[0] + ".txt"
        asked = " ".join(row.text.split()).replace(" Please answer yes or no.", "")
        known = (said for question, said in by_image.get((category, file), ()) if asked.startswith(_bare(question)))
        expected = next(known, None)
        found.append(None if expected is None else {"answer": expected, "task": category})
    return found


def _bare(question: str) -> str:
    return " ".join(question.split()).replace(" Please answer yes or no.", "")


def mme_truths(place: Path) -> dict[tuple[str, str, str], str]:
    """Answers by category, file and question, as the set's folders hold them."""
    found: dict[tuple[str, str, str], str] = {}
    for folder in sorted(path for path in place.iterdir() if path.is_dir()):
        inner = folder / "questions_answers_YN"
        for file in sorted((inner if inner.is_dir() else folder).glob("*.txt")):
            for line in file.read_text("utf-8").splitlines():
                question, tab, answer = line.rpartition("\t")
                if tab:
                    found[folder.name, file.name, question] = answer.strip()
    return found


def _textvqa(rows: Sequence[Row], place: Path) -> list[Fields | None]:
    """TextVQA_0.5.1_val.json by image and question: the question file carries image ids in place of question ids."""
    entries = records.in_container(records.load(place))
    table = {(str(entry["image_id"]), str(entry["question"]).lower()): entry for entry in entries}
    return [table.get((str(row.own_id), _first_line(row))) for row in rows]


def _first_line(row: Row) -> str:
    lines = [line for line in row.text.split("\n") if not line.startswith("Reference OCR token: ")]
    return lines[0].lower()


_JOINS: Mapping[str, Callable[[Sequence[Any], Path], list[Fields | None]]] = {
    "id": _by_id,
    "pope": _pope,
    "mme": _mme,
    "textvqa": _textvqa,
}
