"""Seconds and memory of merging and averaging beside copying the same files, mergekit, and the loop of Bunny's README.

python -m benchmarks.merge [--mergekit PYTHON]    (make bench-merge installs mergekit into a folder of its own)

Every contender is a process of its own. `anonymous` is memory that only it holds (RssAnon of /proc/self/status, looked
at every 5 ms), above what it held after its imports; `resident` counts mapped files too, which the kernel takes back.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure

# Bits per weight: bf16. Llama's names and shapes, so that mergekit takes them for what they are.
HIDDEN, INNER, VOCABULARY, RANK = 1024, 4096, 32000, 64
SIZES_GB = (0.3, 0.6, 1.2)

_WATCH = """
import json, sys, threading, time
from pathlib import Path
def held():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024, int(lines["VmRSS"].split()[0]) * 1024
peak, done = [0, 0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[:] = map(max, peak, held())
folder = Path(sys.argv[1])
{imports}
base, watcher = held(), threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
{work}
seconds = time.perf_counter() - began
peak[:] = map(max, peak, held())
done.set()
watcher.join()
print(json.dumps([seconds, peak[0] - base[0], peak[1] - base[1]]))
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
from vlmrun.checkpoints import average, merge
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

AVERAGE, ONE_TENSOR = "vlmrun average, linear", "vlmrun average, nearly all in one tensor"
# Name, how many models it reads, what it runs.
CONTENDERS = (
    ("vlmrun merge, LoRA 64 on all layers", 1, _MERGE),
    (AVERAGE, 2, _AVERAGE),
    ("vlmrun average, ties", 3, _TIES),
    ("loop over whole shards", 2, _LOOP),
    ("mergekit linear (the LLM alone)", 2, _MERGEKIT),
)


def main() -> None:
    """Writes models of each size, lets every contender work on them, prints the table."""
    parser = measure.parser("merge and average: seconds and memory")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="an interpreter that has mergekit")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES_GB, metavar="GB", help="of one model")
    options = parser.parse_args()
    rows = []
    for size in (0.02,) if options.quick else options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            _models(Path(folder), int(size * 1e9))
            rows += _measured(Path(folder), size, options)
    if not options.quick:
        with tempfile.TemporaryDirectory() as folder:
            _models(Path(folder), int(options.sizes[-1] * 1e9), one_tensor=True)
            rows += [_row(ONE_TENSOR, options.sizes[-1], Path(folder), _AVERAGE)]
    header = ("contender", "GB", "seconds", "of copying", "anonymous MiB", "resident MiB")
    notes = [
        "Memory is above that after the imports. `of copying`: seconds by those of copying the files that are read,"
        " synced like everything here. vlmrun digests nothing here, since the sources are no artifacts.",
    ]
    measure.show(measure.Table("merge and average, bf16, one thread", header, rows, notes), options.json)


def _measured(folder: Path, size: float, options: argparse.Namespace) -> list[list[object]]:
    """Rows of one size: copies, then every contender beside the copy of as many models as it reads."""
    contenders = CONTENDERS if options.mergekit else CONTENDERS[:-1]
    chosen = [item for item in contenders if not options.quick or item[0] == AVERAGE]
    counts = sorted({n for _, n, _ in chosen})
    copies = {n: _row(f"copy {n} model{'s' * (n > 1)}", size, folder, _copying(n)) for n in counts}
    rows = []
    for name, n, script in chosen:
        python = str(options.mergekit) if script is _MERGEKIT else sys.executable
        row = _row(name, size, folder, script, python)
        row[3] = float(row[2]) / float(copies[n][2])  # type: ignore[arg-type]
        rows.append(row)
    return [*copies.values(), *rows]


def _copying(count: int) -> tuple[str, str]:
    return _COPY[0], _COPY[1].format(names=["a", "b", "base"][:count])


def _row(name: str, size: float, folder: Path, script: tuple[str, str], python: str = sys.executable) -> list[object]:
    shutil.rmtree(folder / "out", ignore_errors=True)
    os.sync()
    text = _WATCH.format(imports=script[0], work=script[1])
    done = subprocess.run(
        [python, "-c", text, str(folder)], env=os.environ | measure.QUIET, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    seconds, anonymous, resident = json.loads(done.stdout.splitlines()[-1])
    return [name, size, seconds, None, round(anonymous / 2**20), round(resident / 2**20)]


def _models(folder: Path, n_bytes: int, *, one_tensor: bool = False) -> None:
    """a and b, what they came from (base), and an adapter on a (lora)."""
    import torch

    shapes = _shapes(n_bytes // 2, one_tensor)
    for number, name in enumerate(("base", "a", "b")):
        _write(folder / name, shapes, torch.Generator().manual_seed(number))
    lora = folder / "lora"
    lora.mkdir()
    for part in ("llm", "tower", "connector"):
        (lora / part).symlink_to(folder / "a" / part)
    description = json.loads((folder / "a/model.json").read_text())
    (lora / "model.json").write_text(json.dumps(description | {"adapter": "adapter"}))
    _adapter(lora / "adapter", shapes)


def _shapes(n_weights: int, one_tensor: bool) -> dict[str, tuple[int, ...]]:
    if one_tensor:
        return {"model.embed_tokens.weight": (n_weights // HIDDEN, HIDDEN), "model.norm.weight": (HIDDEN,)}
    vocabulary = min(VOCABULARY, n_weights // 8 // HIDDEN)
    outer = ("lm_head.weight", "model.embed_tokens.weight")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(outer, (vocabulary, HIDDEN))
    layer = {
        **{f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")},
        "mlp.down_proj.weight": (HIDDEN, INNER),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    count = max(1, round((n_weights - 2 * vocabulary * HIDDEN) / (4 * HIDDEN**2 + 3 * HIDDEN * INNER)))
    for number in range(count):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (HIDDEN,)}


def _write(folder: Path, shapes: dict[str, tuple[int, ...]], generator: object) -> None:
    import torch

    from vlmrun.checkpoints.stream import Writer, blocks

    total = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    with Writer(
        folder / "llm", {n: (torch.bfloat16, s) for n, s in sorted(shapes.items())}, max_shard_bytes=total / 4
    ) as writer:
        for name, shape in sorted(shapes.items()):
            pieces = (torch.randn(b - a, *shape[1:], generator=generator).bfloat16() for a, b in blocks(shape))
            writer.write(name, pieces)
    for part in ("tower", "connector"):
        with Writer(folder / part, {"weight": (torch.bfloat16, (64, 64))}) as writer:
            writer.write("weight", [torch.randn(64, 64, generator=generator).bfloat16()])
    layers = sum(name.endswith("q_proj.weight") for name in shapes)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "torch_dtype": "bfloat16",
        "vocab_size": shapes["model.embed_tokens.weight"][0], "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "llm/config.json").write_text(json.dumps(config))
    (folder / "tower/config.json").write_text("{}")
    description = {"format": "vlmrun-1", "model": {}, "template": {}, "image_aspect": "pad", "adapter": None}
    (folder / "model.json").write_text(json.dumps(description | {"quantized": None, "dtype": "bf16"}))


def _adapter(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {}
    for name, shape in shapes.items():
        if "_proj" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, shape[1])
            tensors[f"{stem}.lora_B.weight"] = torch.randn(shape[0], RANK) * 0.01
    save_file(tensors or {"base_model.model.none": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}))


if __name__ == "__main__":
    main()
