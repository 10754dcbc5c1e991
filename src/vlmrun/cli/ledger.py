"""`vlmrun data ledger STAGE`: which records a training used, what was lost, and which are the hardest."""

from __future__ import annotations

import heapq
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmrun import store
from vlmrun.cli.options import at_least_one, new_parser, output_option
from vlmrun.data import ledger_rows
from vlmrun.errors import CheckpointError, ConfigError, DataError
from vlmrun.names import LEDGER
from vlmrun.report import tables
from vlmrun.report.tables import Column, Grid

_EXAMPLES = """\
vlmrun data ledger instruct                    sums, by data entry
vlmrun data ledger instruct --record 0007      was this record trained on
vlmrun data ledger instruct --lost             not used or cut off, and why
vlmrun data ledger instruct --hardest 20       with record_losses: true
vlmrun data ledger instruct --json             every row
"""
_MOST_REASON = 70
Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Prints what is asked for; 3 when a record that is asked for was not trained on."""
    about = "Which records a training used: how often, cut off or left out, and why."
    parser = new_parser("data ledger", about, _EXAMPLES)
    parser.add_argument("stage", help="a train stage: its name, key, name-key or folder")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--record", metavar="ID", help="an id, DATA/ID, or DATA/NUMBER of the record in its file")
    asked.add_argument("--lost", action="store_true", help="records that were not used, or not in full")
    asked.add_argument(
        "--hardest", type=at_least_one, metavar="N", help="those with the highest loss at their last use"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--limit", type=at_least_one, default=50, metavar="N", help="rows of --lost (default: 50)")
    output_option(parser)
    options = parser.parse_args(arguments)
    folder = store.find(Path(options.output), options.stage)
    rows = _read(folder)
    if options.record is not None:
        return _record(folder, rows, options.record, as_json=options.json)
    if options.lost:
        _lost(rows, None if options.json else options.limit, as_json=options.json)
    elif options.hardest is not None:
        _hardest(folder, rows, options.hardest, as_json=options.json)
    elif options.json:
        _dump(rows)
    else:
        _sums(folder, rows)
    return 0


def _read(folder: Path) -> Iterator[Row]:
    file = folder / LEDGER
    if not file.is_file():
        what = (
            "this stage has no ledger: it does not train, is not finished, was trained by an earlier version, or its "
            "notes were incomplete, which a warning in logs/rank-*.log tells"
        )
        raise CheckpointError(what, str(file), "name a train stage; vlmrun ls lists them")
    return ledger_rows.read(file)


def _record(folder: Path, rows: Iterable[Row], asked: str, *, as_json: bool) -> int:
    found = [
        row for row in rows if asked in (row["id"], f"{row['data']}/{row['id']}", f"{row['data']}/{row['record']}")
    ]
    if not found:
        raise DataError(f"no record {asked!r}", str(folder / LEDGER), "an id of the annotation file, or DATA/NUMBER")
    if as_json:
        _dump(found)
    else:
        for row in found:
            sys.stdout.write(f"{row['data']}[{row['record']}] (id {row['id']!r}): {_told(row)}\n")
    return 0 if all(_is_trained(row) for row in found) else DataError.exit_code


def _is_trained(row: Row) -> bool:
    return bool(row["used"] and row.get("supervised"))


def _told(row: Row) -> str:
    if row["used"] == 0:
        return f"not used: {row['skipped']}" if "skipped" in row else "not used: training ended before its turn"
    times = "once" if row["used"] == 1 else f"{row['used']:,} times"
    if "skipped" in row:
        return f"loaded {times}, and not trained: {row['skipped']}"
    said = f"used {times}, {row['supervised']:,} of {row['tokens']:,} tokens supervised"
    said += ", its end cut off (model.max_length)" if row.get("truncated") else ""
    return said + (f", loss {row['losses'][0]:.3g}, then {row['losses'][1]:.3g}" if "losses" in row else "")


def _reason(row: Row) -> str | None:
    """Why a record was lost, or a part of it."""
    if "skipped" in row:
        return str(row["skipped"])
    if row["used"] == 0:
        return "training ended before its turn"
    if not row["supervised"]:
        return "nothing of it is supervised"
    return "its end was cut off" if row.get("truncated") else None


def _lost(rows: Iterable[Row], most: int | None, *, as_json: bool) -> None:
    shown: list[Row] = []
    counts: Counter[str] = Counter()
    for row in rows:
        reason = _reason(row)
        if reason is None:
            continue
        counts[reason] += 1
        if as_json:
            _dump([row | {"reason": reason}])
        elif most is None or len(shown) < most:
            shown.append(row)
    if as_json:
        return
    if not counts:
        sys.stdout.write("nothing was lost: every record was used, and in full\n")
        return
    lines = [[f"{n:,}", _short(reason)] for reason, n in counts.most_common()]
    _table("records that were lost", (Column("records", right=True), Column("why")), lines)
    lines = [[row["data"], str(row["record"]), row["id"], _short(_reason(row) or "")] for row in shown]
    more = f"the first {len(shown)} of {counts.total():,}" if len(shown) < counts.total() else ""
    sys.stdout.write("\n")
    _table(more, (Column("data"), Column("record", right=True), Column("id"), Column("why")), lines)


def _hardest(folder: Path, rows: Iterable[Row], n: int, *, as_json: bool) -> None:
    found = heapq.nlargest(n, (row for row in rows if "losses" in row), key=lambda row: row["losses"][1])
    if not found:
        fix = "stage.NAME.record_losses=true, in a training that is not finished yet: it is not part of the key"
        raise ConfigError("losses of records were not kept", str(folder / LEDGER), fix)
    if as_json:
        _dump(found)
        return
    columns = [Column("data"), Column("record", right=True), Column("id")]
    columns += [Column(title, right=True) for title in ("used", "first loss", "last loss", "mean")]
    lines = []
    for row in found:
        losses = (f"{loss:.4f}" for loss in (*row["losses"], row["mean"]))
        lines.append([row["data"], str(row["record"]), row["id"], str(row["used"]), *losses])
    _table("", columns, lines)


def _sums(folder: Path, rows: Iterable[Row]) -> None:
    sums: dict[str, Counter[str]] = {}
    for row in rows:
        one = sums.setdefault(row["data"], Counter())
        used = row["used"]
        one.update(records=1, used=used > 0, uses=used, truncated=bool(row.get("truncated")), skipped="skipped" in row)
        one.update(tokens=used * row.get("tokens", 0), supervised=used * row.get("supervised", 0))
    names = ("records", "used", "uses", "truncated", "skipped", "tokens", "supervised")
    lines = [[data, *(f"{one[name]:,}" for name in names)] for data, one in sums.items()]
    if len(sums) > 1:
        lines.append(["all", *(f"{sum(one[name] for one in sums.values()):,}" for name in names)])
    _table(folder.name, (Column("data"), *(Column(name, right=True) for name in names)), lines)


def _dump(rows: Iterable[Row]) -> None:
    for row in rows:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def _table(title: str, columns: Sequence[Column], lines: list[list[str]]) -> None:
    tables.write(Grid(title, columns, lines), sys.stdout)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_REASON else text[: _MOST_REASON - 3] + "..."
