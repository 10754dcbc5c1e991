"""Answer files of several programs, read as one: ours, upstream's scripts', lmms-eval's, and OpenAI-style batches."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmrun.errors import DataError
from vlmrun.eval.metrics.base import Answered
from vlmrun.eval.row import Row

_ID_KEYS = ("question_id", "questionId", "id", "index")
_MAX_LISTED = 20


@dataclass(frozen=True)
class Given:
    """One answer of a file.

    Args:
        prompt: the question as it was kept; tells questions of one id apart.
        place: line of the file, from 1.
    """

    id: str
    text: str
    prompt: str | None
    place: int


@dataclass
class Problems:
    """What a file holds that does not count, by kind; of each the number and the first places."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, place: str) -> None:
        """Counts one."""
        self.found[kind].append(place)

    def to_dict(self) -> dict[str, Any]:
        """For scores.json."""
        return {kind: {"count": len(each), "first": each[:_MAX_LISTED]} for kind, each in sorted(self.found.items())}


def read(path: Path, problems: Problems, data: str | None = None) -> list[Given]:
    """Answers in the order of the file. Lines that are none are counted.

    Args:
        data: take the rows of one data entry only, of a file of ours that holds several.

    Raises:
        DataError: when the file cannot be read, or holds no answer in any known layout.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the answers: {error.strerror}", str(path), "name an answers file") from error
    found: list[Given] = []
    for place, value in _values(content, path, problems):
        if data is not None and isinstance(value, dict) and value.get("data") != data:
            continue
        given = _given(value, place)
        if given is None:
            problems.add("not an answer", f"{path}:{place}")
        else:
            found.append(given)
    if not found:
        fix = "JSONL of question_id and answer or text, lmms-eval's samples, or an OpenAI-style batch"
        raise DataError("no answer in the file", str(path), fix)
    return found


def whole(text: str) -> str:
    """Text that can be written: halves of characters, which JSON can hold and UTF-8 cannot, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _values(content: bytes, path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """JSON values with their lines; a file that is one JSON value gives its items."""
    if path.suffix == ".json":
        try:
            whole = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"malformed JSON: {error}", str(path), "fix the file") from error
        if isinstance(whole, dict):  # MMMU's outputs: texts by id
            whole = [{"question_id": key, "text": text} for key, text in whole.items()]
        yield from enumerate(whole if isinstance(whole, list) else [whole], start=1)
        return
    for place, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError):
            problems.add("broken line", f"{path}:{place}")


def _given(row: Any, place: int) -> Given | None:
    """An answer in whichever layout it is."""
    if not isinstance(row, dict):
        return None
    for layout in (_batch, _lmms_eval, _plain):
        found = layout(row)
        if found is not None:
            id, text, prompt = found
            return Given(whole(str(id)), text, prompt, place)
    return None


def _plain(row: Mapping[str, Any]) -> tuple[Any, str, str | None] | None:
    """Ours (`answer`), upstream's (`text`, `prompt`), CMMMU's (`response`)."""
    id = next((row[key] for key in _ID_KEYS if row.get(key) is not None), None)
    if isinstance(id, bool | list | dict):
        return None
    ours = isinstance(row.get("answer"), str) and "data" in row
    text = row["answer"] if ours else next((row[key] for key in ("text", "response", "answer") if key in row), None)
    if id is None or not isinstance(text, str):
        return None
    prompt = row.get("text") if ours else row.get("prompt")
    return id, text, prompt if isinstance(prompt, str) else None


def _lmms_eval(row: Mapping[str, Any]) -> tuple[Any, str, str | None] | None:
    """A line of lmms-eval's samples: `filtered_resps` (or `resps`), the document or its number."""
    if "doc_id" not in row or not ("filtered_resps" in row or "resps" in row):
        return None
    said = row.get("filtered_resps", row.get("resps"))
    while isinstance(said, list) and said:
        said = said[0]
    document = row.get("doc")
    held = document if isinstance(document, dict) else {}
    id = next((held[key] for key in _ID_KEYS if held.get(key) is not None), row["doc_id"])
    return (id, said, None) if isinstance(said, str) else None


def _batch(row: Mapping[str, Any]) -> tuple[Any, str, str | None] | None:
    """A line of a batch's output (vLLM's run-batch, OpenAI's): `custom_id` and a response."""
    if "custom_id" not in row:
        return None
    try:
        content = row["response"]["body"]["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return (row["custom_id"], content, None) if isinstance(content, str) else None


def match(rows: Sequence[Row], given: Sequence[Given], problems: Problems) -> list[Answered]:
    """Every question with its answer, None where there is none. The last of several answers counts, as upstream.

    Questions that share an id are distinguished by the stored question, else by the order of their answers.
    """
    own: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        own[str(row.own_id)].append(row)
    exact = {row.id: row for row in rows}
    chosen: dict[str, Given] = {}
    turns: dict[str, int] = defaultdict(int)
    for answer in given:
        asked = _row_of(answer, exact, own, turns)
        if asked is None:
            problems.add("unknown question", f"line {answer.place}: {answer.id}"[:200])
            continue
        if asked.id in chosen:
            problems.add("answered twice", f"line {answer.place}: {answer.id}"[:200])
        chosen[asked.id] = answer
    answered = []
    for asked in rows:
        answer_of = chosen.get(asked.id)
        if answer_of is None:
            problems.add("not answered", asked.id)
        answered.append(
            Answered(
                id=asked.id,
                gold=asked.fields,
                text=None if answer_of is None else answer_of.text,
                prompt=None if answer_of is None else answer_of.prompt,
                category=str(asked.fields.get("task", asked.category)),
                image=asked.picture,
            )
        )
    return answered


def _row_of(answer: Given, exact: Mapping[str, Row], own: Mapping[str, list[Row]], turns: dict[str, int]) -> Row | None:
    sharing = own.get(answer.id, [])
    if len(sharing) < 2:
        return exact.get(answer.id) or (sharing[0] if sharing else None)
    same = [row for row in sharing if answer.prompt is not None and _alike(answer.prompt, row)]
    if same:
        return same[0]
    place = turns[answer.id]
    turns[answer.id] += 1
    return sharing[min(place, len(sharing) - 1)]


def _alike(prompt: str, row: Row) -> bool:
    plain = " ".join(prompt.replace("<image>", "").split())
    return plain in (" ".join(row.stored.split()), " ".join(row.text.split()))
