"""Mutated scripts and DeepSpeed files: a recipe or an error in our words, quickly; nothing is started, and nothing
is written outside the target. `make test-import` tries 2,000."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from vlmrun.errors import ConfigError
from vlmrun.importers import report, write
from vlmrun.importers.meaning.draft import Options
from vlmrun.importers.script import Request, plan

MUTANTS = int(os.environ.get("VLMRUN_IMPORT_MUTANTS", "60"))
SEED = int(os.environ.get("VLMRUN_IMPORT_SEED", "0"))
SCRIPTS = [
    r"""#!/bin/bash
set -e
LR=${1:-2e-5}; export NCCL_P2P_DISABLE=1
A=(x "y z"); A+=(w)
cat > ds.json <<EOF
{"zero_optimization": {"stage": 2}, "lr": "$LR"}
EOF
for S in {1..2}; do
  if [[ $S == 1* ]] && [ -n "$LR" ]; then O="out/$S-$(basename a/b.c .c)"; else O=$(( S * 2 )); fi
  deepspeed --include localhost:0,1 llava/train/train_mem.py --deepspeed ds.json \
    --model_name_or_path lmsys/vicuna-7b-v1.5 --version v1 --vision_tower openai/clip-vit-large-patch14-336 \
    --data_path d.json --image_folder i --mm_projector_type mlp2x_gelu --learning_rate $LR --output_dir $O
done
""",
    r"""N=`nvidia-smi -L | wc -l`
run() { local x=$1; shift; torchrun --nproc_per_node 8 bunny/train/train.py --model_type phi-2 "$@" --x ${x//a/b}; }
case $M in a|b) run q --learning_rate 1e-3;; *) run "${A[@]}" --lora_enable True --vision_tower siglip;; esac
while [ $I -lt 5 ]; do I=$((I+1)); done
eval "run z --per_device_train_batch_size ${B%.*} \
   --report_to none"
python - <<'EOF'
import os
os.system("touch hacked")
EOF
""",
]
SCRIPTS += [path.read_text("utf-8") for path in sorted((Path(__file__).parents[2] / "parity" / "guides").glob("*.sh"))]
SCRIPTS = [text.replace("./script/deepspeed/zero2.json", "zero.json") for text in SCRIPTS]
ARGUMENTS = re.findall(r"\S+", "dsw 7B 1 256 0.1 0 576 1024 bf16 4 1 1 true true full false 9 /a /b /c 20 2 /out")
DEEPSPEED = """{"bf16": {"enabled": "auto"}, "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9]}},
"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true}, "sub_group_size": 1e9},
"gradient_clipping": 1.0, "train_micro_batch_size_per_gpu": "auto", "steps_per_print": 10}"""
VALUES = ["0", "-1", "nan", "1e999", "true", "None", "''", "x", "[]", "{}", "$Z", "$(z)", "9" * 30, "a/b.c", "auto"]
PIECES = [
    *"'\"`$(){}[]<>|&;\\#\n \t=*?~!@%^,.-",
    "$(", "${", "$((", "))", "<<EOF\n", "done", "do ", "fi\n", "then ", "if ", "while :; do ", "eval ", "\\\n",
    "\\ # x\n",
    "source x.sh\n", "bash x.sh\n", "$(rm -rf /)", "{1..99999}", "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}",
    "f() { f; }; f\n", "((((((((",
    "exec 3<>/dev/tcp/1.1.1.1/80\n", "\0", "é", "\ue000", "--deepspeed /etc/passwd ", "X+=$X$X$X$X;",
]  # fmt: skip


def _mutant(generator, text, fewest=1):
    for _ in range(generator.choice([fewest, 1, 2, 3, 8])):
        if generator.random() < 0.4:  # another value in the place of one
            place = generator.choice([*re.finditer(r"(?<=[ :])[^\s-][^\s,}]*", text)] or [None])
            if place:
                text = text[: place.start()] + generator.choice(VALUES) + text[place.end() :]
            continue
        at = generator.randrange(len(text) + 1)
        end = min(len(text), at + generator.choice([0, 0, 1, 3, 20, 200]))
        if generator.random() < 0.3:
            text = text[:at] + text[end:]
        elif generator.random() < 0.3:
            text = text[:at] + text[at:end] * 3 + text[end:]
        else:
            text = text[:at] + generator.choice(PIECES) + text[at:]
    return text


@pytest.fixture(scope="module")
def watched():
    """What this thread starts, or opens for writing outside the folder in the second list, while there is one."""
    seen, target = [], []

    def hook(event, arguments):
        if not target:
            return
        started = event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "socket.connect",
            "pty.spawn",
        )
        mode = arguments[1] if event == "open" else None
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if started or (writes and not str(arguments[0]).startswith(target[0])):
            seen.append((event, arguments))

    sys.addaudithook(hook)
    yield seen, target
    target.clear()


def test_the_watch_sees_what_is_started_and_written(watched, tmp_path):
    seen, target = watched
    target.append(str(tmp_path / "conf"))
    os.system("true")
    (tmp_path / "elsewhere").write_text("x", encoding="utf-8")
    (tmp_path / "conf").write_text("x", encoding="utf-8")
    target.clear()
    assert [event for event, _ in seen] == ["os.system", "open"]
    seen.clear()


def _import(path, meant):
    """The whole of it, as the command does it; how it ended."""
    try:
        found, reading = plan(
            Request([path], None, ARGUMENTS, meant=meant, options=Options(gpus=8), allow_unsupported=True)
        )
    except ConfigError:
        return "refused"
    files = {name: text for recipe in found.recipes for name, text in write.files(recipe, "x", "a100_bf16").items()}
    write.save(path.parent / "conf", files, overwrite=True)
    report.as_json(found, reading, [], [])
    report.as_text(found, reading, [], everything=True)
    for text in files.values():
        assert isinstance(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), dict)
    return "imported"


@pytest.mark.parametrize("meant", [False, True])
def test_mutated_scripts_are_imported_or_refused(tmp_path, watched, meant):
    generator = random.Random(SEED + meant)
    seen, target = watched
    path, ended, slowest = tmp_path / "train.sh", Counter(), 0.0
    for number in range(MUTANTS // 2):
        path.write_text(_mutant(generator, generator.choice(SCRIPTS)), encoding="utf-8")
        (tmp_path / "zero.json").write_text(_mutant(generator, DEEPSPEED, fewest=0), encoding="utf-8")
        started = time.process_time()
        target.append(str(tmp_path / "conf"))
        try:
            ended[_import(path, meant)] += 1
        finally:
            target.clear()
        seconds = time.process_time() - started
        slowest = max(slowest, seconds)
        assert seconds < 1, (number, path.read_text("utf-8"))
        assert not seen, (number, seen)
    print(f"{dict(ended)}, slowest {slowest:.2f} s")
    assert {item.name for item in tmp_path.iterdir()} <= {"train.sh", "zero.json", "conf"}
    assert ended["imported"] or MUTANTS < 20
