"""A submission file of a benchmark: made from its questions and answers, and checked before it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmrun import artifact
from vlmrun.config.schema import BenchmarkConfig
from vlmrun.errors import ConfigError, DataError
from vlmrun.eval import gold, spreadsheet, submissions
from vlmrun.eval.metrics.base import Answered
from vlmrun.eval.row import Row
from vlmrun.eval.submissions import Made

Make = Callable[[Sequence[Any], Sequence[Any]], Made]

_MAKERS: Mapping[str, tuple[Make, str]] = {
    "vqav2": (submissions.vqav2, "json"),
    "vizwiz": (submissions.vizwiz, "json"),
    "gqa": (submissions.gqa_predictions, "json"),
    "mm_vet": (submissions.mm_vet, "indented"),
    "seed": (submissions.seed, "jsonl"),
    "mmbench": (submissions.mmbench, "xlsx"),
    "docvqa": (submissions.docvqa, "json"),
}
_WHOLE = ("vizwiz", "gqa", "mme")  # whose servers or scripts refuse a file with holes
_NAMES = {"gqa": "testdev_balanced_predictions"}


def write(
    name: str, config: BenchmarkConfig, rows: Sequence[Row], answered: Sequence[Answered], folder: Path
) -> tuple[Path, list[str]]:
    """Writes the file (of MME a folder of files), and returns it with the ids of questions without an answer.

    Raises:
        ConfigError: for a set that has no submission.
        DataError: when its server would refuse the file.
    """
    kind = config.submission
    if kind is None:
        raise ConfigError(f"{name} has no submission", "submission", f"vlmrun score ANSWERS --benchmark {name}")
    given = [
        {"question_id": row.own_id, "text": answer.text, "prompt": row.stored}
        for row, answer in zip(rows, answered, strict=True)
        if answer.text is not None
    ]
    missing = [row.id for row in answered if row.text is None]
    if missing and kind in _WHOLE:
        what = f"{len(missing)} of {len(rows)} questions have no answer, such as {', '.join(missing[:3])}"
        raise DataError(what, f"submission {kind}", "answer them all: its evaluation refuses a file with holes")
    if kind == "mme":
        return _mme(config, given, folder / "mme"), missing
    _refuse_rotations(kind, rows)
    make, form = _MAKERS[kind]
    questions = [{"question_id": row.own_id, "image": row.image, **row.fields} for row in rows]
    if kind == "mmbench" and (lacking := submissions.mmbench_lacks(questions)):
        what = f"the table lacks {', '.join(lacking)}, which MMBench's own converter needs"
        raise DataError(what, config.annotations, "fetch the table again")
    table = [dict(row.fields) for row in rows] if kind == "mmbench" else questions
    path = folder / f"{_NAMES.get(kind, name)}.{'json' if form == 'indented' else form}"
    _write(path, make(table, given).rows, form)
    return path, missing


def _refuse_rotations(kind: str, rows: Sequence[Row]) -> None:
    twice = [id for id, count in Counter(str(row.own_id) for row in rows).items() if count > 1]
    if twice and kind == "mmbench":
        raise DataError(
            f"{len(twice)} questions were asked in several rotations",
            "prompt: rounds",
            "ask once for a submission: prompt=mmbench",
        )


def _mme(config: BenchmarkConfig, given: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    truths = gold.mme_truths(Path(config.gold or "").expanduser())
    try:
        files = submissions.mme_lines(given, truths)
    except KeyError as error:
        raise DataError(
            f"no expected answer for {error.args[0]}", str(config.gold), "use one release of MME"
        ) from error
    for name, text in files.items():
        artifact.write_text(folder / name, text)
    return folder


def _write(path: Path, rows: Any, form: str) -> None:
    if form == "xlsx":
        with artifact.writing(path) as temporary:
            temporary.write_bytes(spreadsheet.workbook(rows))
    elif form == "jsonl":
        artifact.write_text(path, submissions.as_lines(rows))
    else:
        artifact.write_text(path, submissions.as_json(rows, indent=2 if form == "indented" else None))
