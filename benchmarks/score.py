"""Seconds that `vlmrun score` takes for 5,000 answers: `python -m benchmarks.score`. It needs no model and no torch."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Table, parser, run, show, vlmrun

_WORDS = ["red", "blue", "stop", "15", "1999", "yes", "no", "the", "a", "two", "exit", "left", "right", "Yes.", "A"]
_CHOICES = {"A": "red", "B": "blue", "C": "green", "D": "two"}
# metric -> what a question of it holds besides its text, from a drawn word
_METRICS: dict[str, Any] = {
    "exact": lambda word: {"answer": word},
    "vqa": lambda word: {"answers": [word] * 6 + ["red"] * 4},
    "gqa": lambda word: {
        "answer": word,
        "types": {"structural": "query", "semantic": "obj"},
        "question": "What?",
        "isBalanced": True,
    },
    "pope": lambda word: {"answer": "yes" if word < "m" else "no"},
    "mmbench": lambda word: {"answer": "ABCD"[len(word) % 4], **_CHOICES},
    "anls": lambda word: {"answers": [word, "exit"]},
}
_TARGET = 2.0


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--answers", type=int, default=5000)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    n, rounds = (200, 1) if chosen.quick else (chosen.answers, chosen.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(_measured(Path(scratch), n, rounds))
    show(Table(f"Scoring {n:,} answers", ["metric", "cpu s", "median s", "peak MiB", "target"], rows, []), chosen.json)


def _measured(folder: Path, n: int, rounds: int) -> Iterator[list[Any]]:
    for metric, gold in _METRICS.items():
        generator = random.Random(metric)
        words = [generator.choice(_WORDS) for _ in range(n)]
        questions = [
            {
                "question_id": at,
                "image": f"{at // 3}.jpg",
                "text": f"What is {at}?",
                "category": str(at % 7),
                **gold(word),
            }
            for at, word in enumerate(words)
        ]
        answers = [{"question_id": at, "text": generator.choice(_WORDS), "prompt": f"What is {at}?"} for at in range(n)]
        for name, lines in (("questions.jsonl", questions), ("answers.jsonl", answers)):
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "set.yaml").write_text(f"annotations: questions.jsonl\nmetric: {metric}\n")
        command = [*vlmrun(), "score", "answers.jsonl", "--benchmark", "set.yaml"]
        costs = [run(command, folder) for _ in range(rounds)]
        cpu = statistics.median(cost.cpu_seconds for cost in costs)
        seconds = statistics.median(cost.seconds for cost in costs)
        yield [metric, cpu, seconds, max(cost.peak_bytes for cost in costs) >> 20, f"{_TARGET:g} s"]


if __name__ == "__main__":
    main()
