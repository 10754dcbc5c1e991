"""`vlmrun data lint` on a file of a million records: seconds, records a second, and how much memory.

python -m benchmarks.lint [RECORDS]
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Table, parser, show

N_RECORDS = 1_000_000
WORDS = [f"word{number}" for number in range(5000)]
# The peak of a child is read in the child: its parent's own would count.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from vlmrun.data import lint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tally, started = lint.Tally(), time.monotonic()
for finding in lint.lint(Path(sys.argv[1]), lint.Rules(), tally):
    tally.add(finding)
seconds = time.monotonic() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([tally.n_records, tally.counts, seconds, before, peak]))
"""


def write(path: Path, n_records: int) -> None:
    """Records as long as a published mixture's; every thousandth is a copy, every ten thousandth has no answer."""
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(2000)]
    with path.open("w", encoding="utf-8") as handle:
        handle.write("[")
        for index in range(n_records):
            number = index - 1 if index % 1000 == 999 else index
            answer = "" if index % 10_000 == 5000 else f"{texts[number % 2000]} {number}"
            talk = [
                {"from": "human", "value": f"<image>\n{texts[number * 7 % 2000]}"},
                {"from": "gpt", "value": answer},
            ]
            record = {"id": f"{index:09d}", "image": f"train/{number:09d}.jpg", "conversations": talk}
            handle.write((",\n" if index else "") + json.dumps(record))
        handle.write("]")


def main() -> None:
    """Writes the file, lints it, prints a row."""
    options = parser(__doc__ or "")
    options.add_argument("--records", type=int, default=N_RECORDS)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.json"
        write(path, 2_000 if chosen.quick else chosen.records)
        size = path.stat().st_size
        done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    found, counts, seconds, before, peak = json.loads(done.stdout)
    row = [found, size / 1e6, seconds, found / seconds, before / 1024, peak / 1024]
    header = ["records", "MB", "seconds", "records/s", "MB before", "MB at most"]
    show(Table("Lint", header, [[round(value, 1) for value in row]], [f"findings: {counts}"]), chosen.json)


if __name__ == "__main__":
    main()
