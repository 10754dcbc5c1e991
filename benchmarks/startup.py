"""How long a person waits before anything happens: `python -m benchmarks.startup`.

The front half never loads torch. This shows that it pays.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Cost, Table, parser, run, show, vlmrun
from vlmrun.errors import ConfigError

_DATA = ("captions", "instruct", "lora_a", "lora_b", "test")
_TRAINED = ("pretrain", "instruct", "lora", "lora2")
_EVALUATED = ("pretrain", "instruct", "merge", "merge2", "average")

# The smoke recipe with hardly any work in it: all thirteen stages, so that there is something to reuse.
TINY = [
    "+recipe=smoke",
    *(f"data.shapes_{name}.prepare.n_train=48" for name in _DATA),
    *(f"data.shapes_{name}.prepare.n_test=12" for name in _DATA),
    *(f"stage.{name}.max_steps=2" for name in _TRAINED),
    *(f"stage.{name}.optim.warmup_ratio=0" for name in _TRAINED),  # one or two steps cannot be warm-up
    *(f"stage.{name}.engine=plain" for name in _TRAINED),
    *(f"stage.eval_{name}.max_samples=4" for name in _EVALUATED),
    *(f"stage.eval_{name}.max_new_tokens=2" for name in _EVALUATED),
]
# Its problems are that weights and data are not here: it looks at everything else.
_PUBLISHED = "vlmrun check +recipe=bunny_llama3_average"
_FAILS = {_PUBLISHED: ConfigError.exit_code}


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=11, help="runs of each command, after one that is not counted")
    chosen = options.parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    run_of = [*TINY, "only=[pretrain]"] if chosen.quick else TINY
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run([*vlmrun(), *run_of], folder)  # so that the second run below is one
        show(measure(run_of, rounds, folder), chosen.json)


def measure(run_of: list[str], rounds: int, folder: Path) -> Table:
    """Every command once a round, in turn."""
    # label -> command, seconds it should stay below
    commands: dict[str, tuple[list[str], float | None]] = {
        "python -c pass": ([sys.executable, "-c", "pass"], None),
        "python -c 'import hydra'": ([sys.executable, "-c", "import hydra"], None),
        "vlmrun --help": ([*vlmrun(), "--help"], 0.2),
        "vlmrun +recipe=smoke --cfg job": ([*vlmrun(), "+recipe=smoke", "--cfg", "job"], None),
        "vlmrun check +recipe=smoke": ([*vlmrun(), "check", "+recipe=smoke"], 0.7),
        _PUBLISHED: ([*vlmrun(), *_PUBLISHED.split()[1:]], 0.7),
        "vlmrun, all stages finished": ([*vlmrun(), *run_of], 2.0),
    }
    costs: dict[str, list[Cost]] = {label: [] for label in commands}
    for number in range(rounds + 1):
        for label, (command, _) in commands.items():
            cost = run(command, folder, expected=_FAILS.get(label, 0))
            if number > 0:  # the first one fills the disk cache and writes byte code
                costs[label].append(cost)
    hydra = statistics.median(cost.seconds for cost in costs["python -c 'import hydra'"])
    rows = [[label, *_summary(costs[label], hydra, target)] for label, (_, target) in commands.items()]
    header = ["command", "median s", "slowest s", "cpu s", "x hydra", "peak MiB", "target"]
    notes = [
        "Wall time from starting the process to its end; cpu: its processor time, which other work on the machine\n"
        "disturbs less and which targets are compared with: the commands wait for nothing. x hydra: wall time against\n"
        "importing hydra and doing nothing with it. Peak resident memory of the process; none can show less than the\n"
        "benchmark that starts it (about 18 MiB).",
    ]
    return Table(f"start-up, median of {rounds} interleaved runs", header, rows, notes)


def _summary(found: list[Cost], hydra: float, target: float | None) -> list[Any]:
    seconds = statistics.median(cost.seconds for cost in found)
    cpu_seconds = statistics.median(cost.cpu_seconds for cost in found)
    peak = max(cost.peak_bytes for cost in found)
    verdict = None if target is None else f"< {target:g} s: {'met' if cpu_seconds < target else 'MISSED'}"
    slowest = max(cost.seconds for cost in found)
    return [seconds, slowest, cpu_seconds, round(seconds / hydra, 2), round(peak / 2**20), verdict]


if __name__ == "__main__":
    main()
