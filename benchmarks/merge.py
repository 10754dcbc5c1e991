"""Seconds and memory of merge, average and convert beside copying the files, mergekit, and the loop of Bunny's README.

python -m benchmarks.merge [--mergekit PYTHON]    (make bench-merge installs mergekit into a folder of its own)

Every contender is a process of its own. `anonymous` is memory that only it holds (RssAnon of /proc/self/status, looked
at every 5 ms), above what it held after its imports; `resident` counts mapped files too, which the kernel takes back.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from benchmarks import measure, models

SIZES_GB, QUICK_GB, SMALL = (0.3, 0.6, 1.2), 0.2, 1_000_000

_WATCH = """
import json, os, shutil, statistics, sys, threading, time
from pathlib import Path
def held():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024, int(lines["VmRSS"].split()[0]) * 1024
peak, done = [0, 0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[:] = map(max, peak, held())
folder, rounds, n_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
{imports}
def work():
{work}
def ready():
    shutil.rmtree(folder / "out", ignore_errors=True)
    # A virtual machine gets its memory when it is first used, at a tenth of the speed: not on anybody's time.
    with open(folder / "used", "wb") as file:
        for _ in range(n_bytes >> 20):
            file.write(bytes(1 << 20))
    os.unlink(folder / "used")
    os.sync()
base, watcher, seconds = held(), threading.Thread(target=watch, daemon=True), []
watcher.start()
for _ in range(rounds):
    ready()
    began = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - began)
    peak[:] = map(max, peak, held())
done.set()
watcher.join()
print(json.dumps([statistics.median(seconds), peak[0] - base[0], peak[1] - base[1]]))
"""
_SYNC = """
import os
def sync(top):
    for path in Path(top).rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY); os.fsync(fd); os.close(fd)
"""
_COPY = (
    "import shutil" + _SYNC,
    "for name in {names}:\n    shutil.copytree(folder / name, folder / 'out' / name)\nsync(folder / 'out')",
)
_STAGE = """
from vlmrun.merging import average, merge
from vlmrun.config.schema import AverageStage, MergeStage
def stage(method, base=None):
    return AverageStage.model_validate(dict(kind="average", models=["a", "b"], weights=[0.5, 0.5], ema=None, rules=[],
                                            method=method, base_model=base, dtype="keep"))
"""
_AVERAGE = (
    _STAGE,
    "average.average(stage(dict(name='linear', sum='one')), [folder / 'a', folder / 'b'], folder / 'out/weights')",
)
_TIES = (
    _STAGE,
    "average.average(stage(dict(name='ties', density=0.2, sign='sum', normalize=True, scale=1.0), 'base'),"
    " [folder / 'a', folder / 'b'], folder / 'out/weights', base=folder / 'base')",
)
_PLAIN_TIES = (
    _STAGE + "from vlmrun.merging.methods import kernels\nkernels.find_spec = lambda name: None",
    _TIES[1],
)
_MERGE = (
    _STAGE,
    "merge.merge(MergeStage(kind='merge', init_from='a', adapters=[], weights=None, base='trained', arithmetic='fp32',"
    " dtype='keep'), [folder / 'lora'], folder / 'out/weights')",
)
# Restated: pairs of shards are loaded whole, each tensor becomes w1 a + w2 b, and the shard is saved again.
# Source: BAAI-DCAI/Bunny@08273ac:script/train/tutorials (as the specification describes it)
_LOOP = (
    "import torch\nfrom safetensors.torch import load_file, save_file" + _SYNC,
    """
(folder / 'out').mkdir()
for shard in sorted((folder / 'a/llm').glob('*.safetensors')):
    first, second = load_file(shard), load_file(folder / 'b/llm' / shard.name)
    save_file({name: 0.5 * first[name] + 0.5 * second[name] for name in first}, folder / 'out' / shard.name)
sync(folder / 'out')
""",
)
_MERGEKIT = (
    "from mergekit.config import MergeConfiguration\nfrom mergekit.merge import MergeOptions, run_merge" + _SYNC,
    """
models = [dict(model=str(folder / name / 'llm'), parameters=dict(weight=0.5)) for name in 'ab']
config = MergeConfiguration.model_validate(dict(merge_method='linear', models=models, dtype='bfloat16'))
run_merge(config, str(folder / 'out'), MergeOptions(copy_tokenizer=False, lazy_unpickle=True, low_cpu_memory=True))
sync(folder / 'out')
""",
)


def _convert(to: str, tp: int = 1) -> tuple[str, str]:
    work = f"convert(folder / {{!r}}, folder / {{!r}}, {to!r}, How(tp={tp}), prove=False)"
    # Models are built on the meta device to be compared with, by modules that are imported when they are needed.
    first = work.format("small", f"warm-{to}")
    imports = (
        "from vlmrun.formats.convert import convert\nfrom vlmrun.formats.base import How\n"
        f"{first}\nimport shutil\nshutil.rmtree(folder / 'warm-{to}')"
    )
    return imports, work.format("a", "out")


HF_LLAVA, MEGATRON = "vlmrun convert, to hf_llava", "vlmrun convert, to megatron, 2 ranks"
AVERAGE, ONE_TENSOR = "vlmrun average, linear", "vlmrun average, nearly all in one tensor"
QUICK = (AVERAGE, HF_LLAVA, MEGATRON)
# Name, how many models it reads, what it runs.
CONTENDERS = (
    ("vlmrun merge, LoRA 64 on all layers", 1, _MERGE),
    (AVERAGE, 2, _AVERAGE),
    ("vlmrun average, ties", 3, _TIES),
    ("vlmrun average, ties, without numba", 3, _PLAIN_TIES),
    (HF_LLAVA, 1, _convert("hf_llava")),
    ("vlmrun convert, to llava", 1, _convert("llava")),
    (MEGATRON, 1, _convert("megatron", tp=2)),
    ("loop over whole shards", 2, _LOOP),
    ("mergekit linear (the LLM alone)", 2, _MERGEKIT),
)


def main() -> None:
    """Writes models of each size, lets every contender work on them, prints the table."""
    parser = measure.parser("merge, average and convert: seconds and memory")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="an interpreter that has mergekit")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_GB, metavar="GB", help="of one model")
    parser.add_argument("--threads", type=int, default=1, help="of arithmetic; vlmrun's commands take all cores")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is shown")
    options = parser.parse_args()
    os.environ.update(measure.QUIET | {"OMP_NUM_THREADS": str(options.threads)})
    rows = []
    for size in (QUICK_GB,) if options.quick else options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            _models(Path(folder), int(size * 1e9))
            rows += _measured(Path(folder), size, options)
    if not options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _models(Path(folder), int(options.sizes[-1] * 1e9), one_tensor=True)
            rows += [_row(ONE_TENSOR, options.sizes[-1], Path(folder), _AVERAGE, options.rounds)]
    header = ("contender", "GB", "seconds", "of copying", "anonymous MiB", "resident MiB")
    notes = [
        "Memory is above that after the imports. `of copying`: seconds by those of copying the files that are read,"
        " just before, synced like everything here. The sources are no artifacts, so nothing is digested before; what"
        " convert writes in another format is, and is not compared with a run in plain transformers.",
    ]
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    measure.show(measure.Table(f"merge, average and convert, bf16, {threads}", header, rows, notes), options.json)


def _measured(folder: Path, size: float, options: argparse.Namespace) -> list[list[object]]:
    """Rows of one size: the first copies, then every contender beside a copy of as many models as it reads."""
    contenders = CONTENDERS if options.mergekit else CONTENDERS[:-1]
    rounds = 1 if options.quick else options.rounds
    chosen = [item for item in contenders if not options.quick or item[0] in QUICK]
    copies: dict[int, list[object]] = {}
    rows = []
    for name, n, script in chosen:
        python = str(options.mergekit) if script is _MERGEKIT else sys.executable
        # Before each of them: disks of rented machines slow down when much has been written.
        copy = _row(f"copy {n} model{'s' * (n > 1)}", size, folder, _copying(n), rounds, n)
        copies.setdefault(n, copy)
        row = _row(name, size, folder, script, rounds, python=python)
        row[3] = float(row[2]) / float(copy[2])  # type: ignore[arg-type]
        rows.append(row)
    return [*(copies[n] for n in sorted(copies)), *rows]


def _copying(count: int) -> tuple[str, str]:
    return _COPY[0], _COPY[1].format(names=["a", "b", "base"][:count])


def _row(
    name: str,
    size: float,
    folder: Path,
    script: tuple[str, str],
    rounds: int,
    n: int = 1,
    *,
    python: str = sys.executable,
) -> list[object]:
    """Runs a script, which writes `n` models, several times in one process."""
    text = _WATCH.format(imports=script[0], work=textwrap.indent(script[1], "    "))
    command = [python, "-c", text, str(folder), str(rounds), str(int(n * size * 1e9))]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    seconds, anonymous, resident = json.loads(done.stdout.splitlines()[-1])
    return [name, size, seconds, None, round(anonymous / 2**20), round(resident / 2**20)]


def _models(folder: Path, n_bytes: int, *, one_tensor: bool = False) -> None:
    """a and b, what they came from (base), an adapter on a (lora), and one so small that working on it is imports."""
    for number, name in enumerate(("base", "a", "b")):
        shapes = models.write(folder / name, n_bytes, seed=number, one_tensor=one_tensor)
    models.write_lora(folder / "lora", folder / "a", shapes)
    models.write(folder / "small", SMALL)


if __name__ == "__main__":
    main()
