"""Mutated scripts: an answer or an error in our words, quickly, and nothing is started or written."""

from __future__ import annotations

import os
import random
import sys
import time

import pytest

from vlmrun.errors import ConfigError
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
PIECES = [
    *"'\"`$(){}[]<>|&;\\#\n \t=*?~!@%^,.-",
    "$(", "${", "$((", "))", "<<EOF\n", "done", "do ", "fi\n", "then ", "if ", "while :; do ", "eval ", "\\\n",
    "\\ # x\n",
    "source x.sh\n", "bash x.sh\n", "$(rm -rf /)", "{1..99999}", "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}",
    "f() { f; }; f\n", "((((((((",
    "exec 3<>/dev/tcp/1.1.1.1/80\n", "\0", "é", "\ue000", "--deepspeed /etc/passwd ", "X+=$X$X$X$X;",
]  # fmt: skip


def _mutant(generator):
    text = generator.choice(SCRIPTS)
    for _ in range(generator.randint(1, 8)):
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
    """What this thread starts or opens for writing while the fixture's list is in use."""
    seen, on = [], []

    def hook(event, arguments):
        if not on:
            return
        if event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "socket.connect",
            "pty.spawn",
        ) or (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            seen.append((event, arguments))

    sys.addaudithook(hook)
    yield seen, on
    on.clear()


def test_the_watch_sees_what_is_started(watched):
    seen, on = watched
    on.append(True)
    os.system("true")
    on.clear()
    assert seen
    seen.clear()


@pytest.mark.parametrize("meant", [False, True])
def test_mutated_scripts_are_read_or_refused(tmp_path, watched, meant):
    generator = random.Random(SEED + meant)
    seen, on = watched
    path = tmp_path / "train.sh"
    imported = 0
    for number in range(MUTANTS // 2):
        path.write_text(_mutant(generator), encoding="utf-8")
        started = time.process_time()
        on.append(True)
        try:
            found, _ = plan(Request([path], meant=meant, options=Options(gpus=8), allow_unsupported=True))
            imported += bool(found.recipes)
        except ConfigError:
            pass
        finally:
            on.clear()
        assert time.process_time() - started < 1, (number, path.read_text("utf-8"))
        assert not seen, (number, seen)
    assert [item.name for item in tmp_path.iterdir()] == ["train.sh"]
    assert imported or MUTANTS < 20
