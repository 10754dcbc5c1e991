"""What commands mean: snippets, ranks, families, Megatron, DeepSpeed files, and argparse's own rules."""

from __future__ import annotations

import time

import pytest

from vlmrun.errors import ConfigError
from vlmrun.importers.launch import take_apart
from vlmrun.importers.meaning.draft import Options
from vlmrun.importers.meaning.family import detect
from vlmrun.importers.script import Request, plan
from vlmrun.importers.shell.reader import read_script
from vlmrun.importers.snippets import read_snippet

LLAVA = (
    "llava/train/train_mem.py --model_name_or_path lmsys/vicuna-7b-v1.5 --version v1 --data_path d.json "
    "--vision_tower openai/clip-vit-large-patch14-336 --per_device_train_batch_size 4 --learning_rate 1e-4 "
    "--output_dir o "
)


def _plan(tmp_path, text, **options):
    path = tmp_path / "train.sh"
    path.write_text(text, encoding="utf-8")
    return plan(Request([path], options=Options(**options)))[0]


def _values(tmp_path, text, **options):
    (recipe,) = _plan(tmp_path, text, **options).recipes
    return {item.key: item.value for item in recipe.settings()}


@pytest.mark.parametrize(
    ("launcher", "nodes", "ranks"),
    [
        ("deepspeed --include localhost:0,1,3", 1, 3),
        ("deepspeed --num_nodes 2 --num_gpus 4", 2, 4),
        ("CUDA_VISIBLE_DEVICES=2,5 deepspeed", 1, 2),
        ("torchrun --nnodes 3 --nproc_per_node=2", 3, 2),
        ("torchrun", 1, 1),
        ("accelerate launch --num_machines 2 --num_processes 16 --multi_gpu", 2, 8),
        ("#SBATCH --nodes=2\n#SBATCH --gres=gpu:4\nsrun -l --exclusive torchrun --nproc_per_node 4 --nnodes 2", 2, 4),
        ("python3 -u", 1, 1),
        ("python -m torch.distributed.run --nproc_per_node 5", 1, 5),
        ("nohup env A=1 deepspeed --num_gpus=6", 1, 6),
    ],
)
def test_ranks_and_batch_follow_from_the_launcher(tmp_path, launcher, nodes, ranks):
    values = _values(tmp_path, f"{launcher} {LLAVA} --gradient_accumulation_steps 3")
    assert (values["hardware.nodes"], values["hardware.ranks_per_node"]) == (nodes, ranks)
    assert values["stage.instruct.global_batch"] == 4 * 3 * nodes * ranks


@pytest.mark.parametrize(
    ("flags", "family"),
    [
        ("llava/train/train.py --lr 1", "llava"),
        ("bunny/train/train.py --lr 1", "bunny"),
        ("finetune.py --llm_type llama3 --lr 1", "minicpm"),
        ("t.py --mm_dense_connector_type dci --lr 1", "denseconnector"),
        ("t.py --train-iters 5", "megatron"),
        ("t.py --mm_tunable_parts x --lr 1", "next"),
        ("t.py --tune_type_llm full --lr 1", "tinyllava"),
        ("t.py --data_mixture a --tune_language_model True", "vila"),
        ("llava/train/train.py --data_path ko_chat.json --lr 1", "kollava"),
        ("t.py --learning_rate 1", "hf"),
    ],
)
def test_families_by_their_own_flags_and_paths(tmp_path, flags, family):
    path = tmp_path / "train.sh"
    path.write_text(f"torchrun {flags}\n", encoding="utf-8")
    (command,) = read_script(path).commands
    assert detect(take_apart(command)) == family


def test_argparse_takes_the_last_of_two_beginnings_and_flags_without_a_value(tmp_path):
    values = _values(
        tmp_path, f"torchrun {LLAVA} --learning_rate 3e-4 --weight_de 0.5 --gradient_checkpointing --bf16=yes"
    )
    stage = "stage.instruct."
    assert (values[f"{stage}optim.lr"], values[f"{stage}optim.weight_decay"]) == (3e-4, 0.5)
    assert values[f"{stage}gradient_checkpointing"] is True
    assert values["hardware.precision"] == "bf16"


def test_upstreams_defaults_are_taken_where_nothing_is_said(tmp_path):
    values = _values(tmp_path, f"torchrun {LLAVA}")
    stage = "stage.instruct."
    wanted = {"epochs": 3.0, "optim.schedule": "linear", "optim.warmup_ratio": 0.0, "optim.max_grad_norm": 1.0}
    assert {key: values[stage + key] for key in wanted} == wanted
    assert (values["model.max_length"], values["model.tower.layers"]) == (512, [-1])
    assert values["hardware.precision"] == "fp32"


def test_quirks_are_taken_along_when_asked(tmp_path):
    text = "finetune.py --llm_type llama3 --model_name_or_path openbmb/MiniCPM-Llama3-V-2_5 --data_path d"
    text = f"torchrun {text} --learning_rate 1e-6 --deepspeed ds_config_zero2.json --max_steps 10"
    assert "stage.instruct.compat.offload_schedule" not in _values(tmp_path, text)
    assert _values(tmp_path, text, quirks=True)["stage.instruct.compat.offload_schedule"] is True
    values = _values(tmp_path, text)
    assert (values["stage.instruct.zero"], values["stage.instruct.deepspeed.reduce_bucket_size"]) == (2, 200000000)


def test_the_file_of_accelerate_counts(tmp_path):
    (tmp_path / "ds.yaml").write_text(
        "mixed_precision: bf16\nnum_processes: 4\ndeepspeed_config: {zero_stage: 3, gradient_clipping: 0.5}\n"
    )
    values = _values(tmp_path, f"accelerate launch --config_file ds.yaml --num_processes 2 {LLAVA}")
    assert (values["hardware.precision"], values["hardware.ranks_per_node"]) == ("bf16", 2)
    assert (values["stage.instruct.zero"], values["stage.instruct.optim.max_grad_norm"]) == (3, 0.5)
    with pytest.raises(ConfigError, match=r"--config_file no\.yaml is not supported: no\.yaml is not there"):
        _plan(tmp_path, f"accelerate launch --config_file no.yaml --num_processes 2 {LLAVA}")


@pytest.mark.parametrize(
    "text",
    [
        f"for I in {{1..900}}; do torchrun {LLAVA} --seed $I; done",
        "X=abcdefgh; while :; do X=$X$X; Y=${X//a/b}; done",
        "while :; do Y=$(echo $(echo {1..500})); done",
        "f() { g; }; g() { f; }; f",
        'A=({1..1000}); while :; do A+=("${A[@]}"); go "${A[@]}"; done',
    ],
)
def test_endless_scripts_are_refused_soon(tmp_path, text):
    started = time.process_time()
    with pytest.raises(ConfigError):
        _plan(tmp_path, text)
    assert time.process_time() - started < 2


def test_megatron_is_read_by_its_own_names(tmp_path):
    flags = (
        "--micro-batch-size 1 --global-batch-size 256 --lr 1.5e-4 --min-lr 1e-5 --lr-decay-style cosine "
        "--train-iters 20000 --lr-warmup-iters 200 --tensor-model-parallel-size 4 --bf16 --freeze-LM --freeze-ViT "
        "--clip-grad 0.5 --num-layers 32 --attention-dropout 0 --hidden-dropout 0 --eod-mask-loss --eod-mask-loss"
    )
    found = _plan(tmp_path, f"torchrun --nproc_per_node 8 pretrain.py {flags}")
    values = {item.key: item.value for item in found.recipes[0].settings()}
    assert (values["stage.pretrain.optim.min_lr"], values["stage.pretrain.optim.min_lr_ratio"]) == (1e-5, 0.0)
    assert (values["stage.pretrain.max_steps"], values["stage.pretrain.epochs"]) == (20000, None)
    assert values["stage.pretrain.optim.warmup_steps"] == 200
    assert (values["hardware.tensor_parallel"], values["stage.pretrain.global_batch"]) == (4, 256)
    assert (values["stage.pretrain.tune.llm"], values["stage.pretrain.tune.connector"]) == ("freeze", "full")
    assert len(found.accounts) == found.flags


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--num_train_epochs 2", {"epochs": 2.0}),
        ("--num_train_epochs 2 --max_steps -1", {"epochs": 2.0}),
        ("--num_train_epochs 2 --max_steps 70", {"epochs": None, "max_steps": 70}),
        ("--max_steps 70", {"epochs": None, "max_steps": 70}),
        (
            "--lr_scheduler_type polynomial --lr_scheduler_kwargs '{\"power\": 2.0}'",
            {"optim.schedule": "polynomial", "optim.power": 2.0, "optim.min_lr": 1e-7, "optim.min_lr_ratio": 0.0},
        ),
        (
            "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{\"min_lr_rate\": 0.1}'",
            {"optim.schedule": "cosine", "optim.min_lr_ratio": 0.1},
        ),
        ("--lr_scheduler_type inverse_sqrt --warmup_steps 9", {"optim.schedule": "inverse_sqrt"}),
        ("--lr_scheduler_type inverse_sqrt", {"optim.schedule": "cosine"}),
        (
            "--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs '{\"num_decay_steps\": 30}'",
            {"optim.schedule": "wsd", "optim.cooldown_steps": 30},
        ),
        ("--lr_scheduler_type constant --warmup_ratio 0.5", {"optim.schedule": "constant", "optim.warmup_ratio": 0.0}),
    ],
)
def test_lengths_and_schedules_of_transformers(tmp_path, flags, wanted):
    values = _values(tmp_path, f"torchrun {LLAVA} {flags}")
    assert {key: values.get(f"stage.instruct.{key}") for key in wanted} == wanted


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lr_scheduler_type polynomial --lr_scheduler_kwargs '{\"cycles\": 2}'", "cycles is left out"),
        ("--lr_scheduler_type linear --lr_scheduler_kwargs [1]", "is a JSON object, not '\\[1\\]'"),
        ("--lr_scheduler_type linear --lr_scheduler_kwargs {", "is a JSON object"),
    ],
)
def test_arguments_of_a_schedule_are_never_dropped(tmp_path, flags, said):
    with pytest.raises(ConfigError, match=said):
        _plan(tmp_path, f"torchrun {LLAVA} {flags}")


def test_trainings_of_other_models_are_recipes_of_their_own(tmp_path):
    other = LLAVA.replace("7b-v1.5", "13b-v1.5").replace("output_dir o", "output_dir p")
    found = _plan(tmp_path, f"torchrun {LLAVA}\ntorchrun {other}\n")
    assert [recipe.name for recipe in found.recipes] == ["train", "train_2"]


@pytest.mark.parametrize(
    ("source", "kind", "reads", "settings"),
    [
        (
            "a = load_file('x/model-1.safetensors')\nb = load_file('y/model-1.safetensors')\n"
            "out = {k: 0.3 * a[k] + b[k] * 0.7 for k in a}\nsave_file(out, 'z/model-1.safetensors')",
            "average", ["x", "y"], {"weights": [0.3, 0.7]},
        ),
        (
            "w = 0.25\na = torch.load('x/model.bin')\nb = torch.load('y/model.bin')\n"
            "for k in a:\n    a[k] = a[k].float() * w + (1 - w) * b[k].float()\ntorch.save(a, 'z/model.bin')",
            "average", ["x", "y"], {"weights": [0.25, 0.75]},
        ),
        (
            "one = AutoModel.from_pretrained('x')\ntwo = AutoModel.from_pretrained('y')\n"
            "a = one.state_dict()\nb = two.state_dict()\nc = {k: (a[k] + b[k]) / 2 for k in a}\n"
            "one.load_state_dict(c)\none.save_pretrained('z')",
            "average", ["x", "y"], {"weights": [0.5, 0.5]},
        ),
        (
            "path = 'out/lora'\nm = PeftModel.from_pretrained(base, path)\n"
            "m = m.merge_and_unload()\nm.save_pretrained('out/whole')",
            "merge", ["out/lora"], {},
        ),
        (
            "m = AutoPeftModelForCausalLM.from_pretrained('out/lora', device_map='auto').merge_and_unload()",
            "merge", ["out/lora"], {},
        ),
    ],
)  # fmt: skip
def test_merges_and_averages_are_recognized_in_python(source, kind, reads, settings):
    (found,) = read_snippet(source)
    assert (found.kind, found.reads, found.settings) == (kind, reads, settings)


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "a * 0.5 + b * 0.5",
        "def (",
        "a = load_file(x)\nb = a[k] * 2",
        "(" * 500,
        "x = " + "+".join("a" * 3000),
    ],
)
def test_other_python_is_nothing(source):
    assert read_snippet(source) == []


def test_an_average_of_adapters_folders_means_the_merged_ones(tmp_path):
    text = f"torchrun {LLAVA} --lora_enable True\ntorchrun {LLAVA.replace('dir o', 'dir p')} --lora_enable True\n"
    for name in "op":
        text += f"python scripts/merge_lora_weights.py --model-path {name} --save-model-path {name}-merged\n"
    text += "cp -r p-merged avg\npython - <<'EOF'\na = load_file(f'o/m-{i}.safetensors')\n"
    text += "b = load_file(f'p/m-{i}.safetensors')\n"
    text += "s = {k: a[k] * 0.5 + b[k] * 0.5 for k in a}\nsave_file(s, 'avg/m.safetensors')\nEOF\n"
    values = _values(tmp_path, text)
    assert values["stage.average.models"] == ["merge", "merge2"]
    assert values["stage.average.weights"] == [0.5, 0.5]


def test_a_deepspeed_file_outside_the_root_is_not_read(tmp_path):
    (tmp_path / "secret.json").write_text('{"zero_optimization": {"stage": 3}}', encoding="utf-8")
    inner = tmp_path / "in"
    inner.mkdir()
    (inner / "train.sh").write_text(f"torchrun {LLAVA} --deepspeed ../secret.json\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"secret\.json is not there"):
        plan(Request([inner / "train.sh"]))
