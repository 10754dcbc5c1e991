"""`vlmrun import` and `export-script`, from the command line to the composed recipe."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
import yaml

from vlmrun.cli.app import main
from vlmrun.cli.train import compose

TRAIN = """deepspeed --num_gpus 8 llava/train/train_mem.py --deepspeed ./zero2.json \\
    --model_name_or_path lmsys/vicuna-7b-v1.5 --version plain --data_path ./captions.json \\
    --image_folder ./pics --vision_tower openai/clip-vit-large-patch14-336 \\
    --mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --mm_vision_select_layer -2 --bf16 True \\
    --output_dir ./out/align --num_train_epochs 1 --per_device_train_batch_size 32 \\
    --learning_rate 1e-3 --warmup_ratio 0.03 --lr_scheduler_type cosine --model_max_length 2048 \\
    --save_total_limit 1 --report_to wandb --image_aspect_ratio square --mm_use_im_patch_token False
"""
TUNE = TRAIN.replace(
    "--tune_mm_mlp_adapter True", "--pretrain_mm_mlp_adapter ./out/align/mm_projector.bin --lora_enable True"
)
TUNE = TUNE.replace("plain", "v1").replace("./out/align ", "./out/lora ").replace("captions", "talk")
MERGE = """python scripts/merge_lora_weights.py --model-path out/lora --model-base lmsys/vicuna-7b-v1.5 \\
    --save-model-path out/merged
"""
BROKEN = TRAIN.replace("\\\n    --mm_proj", "@\n    --mm_proj")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _import(here, text, *options, name="train.sh"):
    (here / name).write_text(text, encoding="utf-8")
    return main(["import", name, *options])


@pytest.mark.parametrize(
    "options",
    [
        ("--name", "../../esc"), ("--name", "/esc"), ("--name", ""), ("--name", "a\nb"), ("--name", "-"),
        ("--name", "esc\n"), ("--hardware", "../esc"), ("--hardware", "esc\n  - x: y"),
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_before_anything_is_written(here, capsys, options):
    (here / "in").mkdir()
    assert _import(here, TRAIN, "--out", "in/imp", f"{options[0]}={options[1]}") == 2
    assert options[0] in capsys.readouterr().err
    assert {path.name for path in here.rglob("*")} == {"in", "train.sh"}


def test_a_chain_becomes_stages_that_refer_to_one_another(here, capsys):
    assert _import(here, TRAIN + TUNE + MERGE) == 0
    recipe = yaml.safe_load((here / "conf/recipe/train.yaml").read_text("utf-8"))
    assert list(recipe["stage"]) == ["pretrain", "lora", "merge"]
    assert recipe["stage"]["lora"]["init_from"] == "pretrain"
    assert recipe["stage"]["merge"]["init_from"] == "lora"
    assert "weights" not in recipe["model"].get("connector", {})
    capsys.readouterr()
    assert main(["train", "+recipe=train", "--config-dir", "conf", "--cfg", "job"]) in (0, 2)  # data is not here
    assert "lr: 0.001" in capsys.readouterr().out


def test_a_chain_ends_in_evaluations_that_check_compares_too(here, capsys):
    text = TRAIN + TUNE + MERGE
    for split in ("val", "test"):
        text += f"python -m llava.eval.model_vqa_loader --model-path out/merged --question-file {split}.jsonl "
        text += "--image-folder pics --answers-file a.jsonl --conv-mode vicuna_v1 --temperature 0\n"
    assert _import(here, text) == 0
    recipe = yaml.safe_load((here / "conf/recipe/train.yaml").read_text("utf-8"))
    assert list(recipe["stage"]) == ["pretrain", "lora", "merge", "evaluate", "evaluate2"]
    assert recipe["stage"]["evaluate2"] == {"template": "vicuna_v1", "init_from": "merge", "data": ["test"]}
    assert main(["import", "train.sh", "--check"]) == 0
    path = here / "conf/recipe/train.yaml"
    path.write_text(path.read_text("utf-8").replace("data: [test]", "data: [val]"), encoding="utf-8")
    capsys.readouterr()
    assert main(["import", "train.sh", "--check"]) == 2
    assert "stage.evaluate2.data is ['val'], not ['test']" in capsys.readouterr().err


def test_positional_arguments_may_look_like_options(here):
    assert _import(here, TRAIN.replace("--bf16 True", '"$@"'), "--arg", "--bf16", "--arg", "True") == 0
    assert "precision: bf16" in (here / "conf/recipe/train.yaml").read_text("utf-8")


def test_every_value_names_its_line(here):
    _import(here, "# a\n\n" + TRAIN)
    text = (here / "conf/recipe/train.yaml").read_text("utf-8")
    assert re.search(r"micro_batch: 32 +# line 7: --per_device_train_batch_size 32", text)
    assert re.search(r"connector: full +# default of LLaVA", text)


def test_the_report_counts_every_flag_once(here, capsys):
    assert _import(here, TRAIN + TUNE + MERGE, "--report", "json") == 0
    report = json.loads(capsys.readouterr().out)
    flags = len(re.findall(r"(?<= )--?[a-z]", TRAIN + TUNE + MERGE))
    assert report["flags"] == flags == len(report["accounts"]) == sum(report["counts"].values())
    assert report["counts"]["unknown"] == 0


def test_the_report_is_there_for_a_script_that_is_refused(here, capsys):
    text = TRAIN.replace("plain", "$V").replace("openai/clip-vit-large-patch14-336", "acme/eye")
    assert _import(here, text, "--report", "json") == 2
    report = json.loads(capsys.readouterr().out)
    assert report["flags"] == len(report["accounts"]) == sum(report["counts"].values())
    assert [flag for flag, _ in report["commands"][0]["flags"]] == re.findall(r"(?<= )--(?!num_gpus)\w+", text)
    said = [problem["what"] for problem in report["problems"]]
    assert "--version has no value" in said
    assert any(what.startswith("--vision_tower acme/eye is not supported: no tower fits") for what in said)


def test_a_part_that_nothing_fits_is_written_with_what_is_missing(here, capsys):
    text = TUNE.replace("openai/clip-vit-large-patch14-336", "acme/Eye-Large").replace("mlp2x_gelu", "qformer")
    assert _import(here, text) == 2
    assert "model/tower/eye_large.yaml is written without its class" in capsys.readouterr().err
    assert _import(here, text, "--allow-unsupported") == 0
    model = here / "conf/model"
    assert yaml.safe_load((model / "tower/eye_large.yaml").read_text("utf-8"))["_target_"] == "???"
    assert yaml.safe_load((model / "connector/qformer.yaml").read_text("utf-8"))["_target_"] == "???"
    capsys.readouterr()
    assert main(["check", "--config-dir", "conf", "+recipe=train"]) == 2
    missing = capsys.readouterr().err
    assert "model.tower._target_ has no value yet" in missing
    assert "model.connector._target_ has no value yet" in missing
    for name, target in (("tower/eye_large", "towers.clip.Clip"), ("connector/qformer", "connectors.mlp.MLP")):
        path = model / f"{name}.yaml"
        more = "depth: 2\n" if name.startswith("connector") else ""
        path.write_text(path.read_text("utf-8").replace("???", f"vlmrun.model.{target}", 1) + more, encoding="utf-8")
    assert main(["import", "train.sh", "--allow-unsupported", "--check"]) == 0


def test_check_finds_an_edited_value(here, capsys):
    assert _import(here, TRAIN) == 0
    assert main(["import", "train.sh", "--check"]) == 0
    path = here / "conf/recipe/train.yaml"
    path.write_text(path.read_text("utf-8").replace("lr: 0.001", "lr: 0.002"), encoding="utf-8")
    capsys.readouterr()
    assert main(["import", "train.sh", "--check"]) == 2
    error = capsys.readouterr().err
    assert "stage.pretrain.optim.lr is 0.002, not 0.001" in error
    assert "--learning_rate 1e-3" in error


def test_what_the_user_has_is_not_overwritten(here, capsys):
    assert _import(here, TRAIN) == 0
    assert main(["import", "train.sh"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["import", "train.sh", "--overwrite"]) == 0


def test_a_value_of_a_script_is_never_an_interpolation(here, monkeypatch):
    monkeypatch.setenv("SECRET", "shown")
    assert _import(here, TRAIN.replace("./captions.json", "'./${oc.env:SECRET}.json'")) == 0
    assert main(["import", "train.sh", "--check"]) == 0


def test_a_sweep_of_one_training_is_one_recipe_of_several_stages(here):
    text = "for LR in 1e-3 2e-3; do\n" + TRAIN.replace("1e-3", "$LR").replace("out/align", "out/$LR") + "done\n"
    assert _import(here, text) == 0
    recipe = yaml.safe_load((here / "conf/recipe/train.yaml").read_text("utf-8"))
    assert [stage["optim"]["lr"] for stage in recipe["stage"].values()] == [1e-3, 2e-3]


def test_the_deepspeed_file_beside_the_script_counts(here):
    (here / "zero2.json").write_text(
        '{"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}, "gradient_clipping": 0.5}'
    )
    _import(here, TRAIN)
    stage = yaml.safe_load((here / "conf/recipe/train.yaml").read_text("utf-8"))["stage"]["pretrain"]
    assert (stage["zero"], stage["offload"], stage["optim"]["max_grad_norm"]) == (1, "cpu", 0.5)


OWN = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale_window": 500, "loss_scale": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95]}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": False, "buffer_count": 4},
        "reduce_bucket_size": "auto",
        "sub_group_size": 1e9,
        "overlap_comm": False,
    },
    "gradient_accumulation_steps": 4,
    "steps_per_print": 10,
    "flops_profiler": {},
}


def test_every_value_of_an_own_deepspeed_file_is_accounted_for(here, capsys):
    (here / "zero2.json").write_text(json.dumps(OWN), encoding="utf-8")
    assert _import(here, TRAIN, "--report", "json") == 0
    report = json.loads(capsys.readouterr().out)["file_values"]
    found = {account["flag"].split(" ", 2)[1]: account["verdict"] for account in report["accounts"]}
    assert report["values"] == len(report["accounts"]) == sum(report["counts"].values()) == len(found) == 19
    assert {name for name, verdict in found.items() if verdict == "differs"} == {
        "optimizer.params.betas", "gradient_accumulation_steps", "scheduler.type", "scheduler.params.warmup_num_steps",
    }  # fmt: skip
    stage = yaml.safe_load((here / "conf/recipe/train.yaml").read_text("utf-8"))["stage"]["pretrain"]
    assert (stage["zero"], stage["offload"], stage["deepspeed"]) == (
        3, "cpu", {"offload_param": "none", "fp16": {"loss_scale_window": 500}, "pin_memory": False,
                   "sub_group_size": 1000000000, "overlap_comm": False},
    )  # fmt: skip
    assert main(["import", "train.sh", "--check"]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wandb": {"enabled": True}}, "ds.json wandb.enabled true is not supported"),
        ({"zero_optimisation": {"stage": 2}}, "no value of deepspeed that is known here"),
        ({"zero_optimization": {"stage": 2, "overlap_com": True}}, "overlap_comm is near"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "yes"}}, 'overlap_comm is "yes", not a Boolean'),
        ({"zero_optimization": {"stage": 2, "sub_group_size": 0.5}}, "sub_group_size is 0.5, not a whole number"),
        ({"fp16": {"loss_scale": 128}}, "the loss scale is dynamic"),
        ({"zero_optimization": []}, "is no DeepSpeed JSON"),
        ([], "is no DeepSpeed JSON"),
    ],
)
def test_values_of_a_deepspeed_file_are_never_dropped(here, capsys, change, said):
    (here / "ds.json").write_text(json.dumps(change), encoding="utf-8")
    assert _import(here, TRAIN.replace("zero2.json", "ds.json")) == 2
    assert said in capsys.readouterr().err
    assert not (here / "conf").exists()


def test_every_value_of_accelerates_file_is_accounted_for(here, capsys):
    (here / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}), encoding="utf-8")
    (here / "acc.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\nnum_processes: 4\ndeepspeed_config:\n"
        "  deepspeed_config_file: ds.json\n  zero3_init_flag: true\n",
        encoding="utf-8",
    )
    text = re.sub(r"deepspeed --num_gpus 8", "accelerate launch --config_file acc.yaml", TRAIN)
    assert _import(here, text.replace("--deepspeed ./zero2.json", ""), "--report", "json") == 0
    report = json.loads(capsys.readouterr().out)["file_values"]
    assert [account["verdict"] for account in report["accounts"]] == [
        "no effect", "taken", "taken", "no effect", "taken",
    ]  # fmt: skip
    recipe = yaml.safe_load((here / "conf/recipe/train.yaml").read_text("utf-8"))
    assert (recipe["stage"]["pretrain"]["zero"], recipe["hardware"]["ranks_per_node"]) == (1, 4)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("import os\n#!x", [], ["no training command"]),
        ("#!/usr/bin/env python3\nprint(1)\n", [], ["not a shell script", "vlmrun import train.sh"]),
        ("echo hello\nls\n", [], ["no training command", "give the script that starts"]),
        (TRAIN.replace("--bf16 True", "--model_type phi-2 --llm_type llama3"), [], ["two families", "--family"]),
        (TRAIN.replace("--bf16", "--bf15"), [], ["--bf15 True is not", "--bf16 is near", "line 4"]),
        (TRAIN.replace("plain", "$V"), [], ["--version has no value", "line 2", "--env NAME=VALUE"]),
        (TRAIN.replace("1e-3", "fast"), [], ["'fast' is no float", "--learning_rate fast"]),
        (TRAIN.replace("--bf16 True", "--bf16 maybe"), [], ["--bf16 is true or false, not 'maybe'"]),
        (TRAIN.replace(" --num_gpus 8", ""), [], ["how many GPUs", "--gpus 8"]),
        (TRAIN.replace("zero2.json", "mine.json"), [], ["mine.json is not there", "--root"]),
        (BROKEN.replace("@", "\\ # a note"), [], ["a comment behind the backslash", "line 3", "--as-meant"]),
        (BROKEN.replace("@", ""), [], ["the backslash at the end of the line is missing", "line 3"]),
        ("bash train.sh\n", [], ["a cycle of calls: train.sh -> train.sh"]),
        (TRAIN.replace("openai/clip-vit-large-patch14-336", "acme/eye"), [], ["no tower fits 'acme/eye'"]),
        ("while true; do X=1; done\n" + TRAIN, [], ["more than 10,000 statements"]),
        (TRAIN, ["--family", "llama"], ["no family 'llama'", "did you mean 'llava'"]),
        (TRAIN, ["--env", "1=2"], ["--env takes NAME=VALUE"]),
    ],
)  # fmt: skip
def test_bad_input_says_what_where_and_how_to_mend_it(here, capsys, text, options, said):
    assert _import(here, text, *options) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error
    assert not (here / "conf").exists()


def test_a_broken_continuation_is_taken_as_meant_when_asked(here):
    assert _import(here, BROKEN.replace("@", "\\ # a (note)"), "--as-meant") == 0
    assert main(["import", "train.sh", "--as-meant", "--check"]) == 0
    assert _import(here, TRAIN, "--name", "plain") == 0
    meant, plain = ((here / f"conf/recipe/{name}.yaml").read_text("utf-8") for name in ("train", "plain"))
    assert re.sub(r"line \d+|plain|train", "", meant) == re.sub(r"line \d+|plain|train", "", plain)


def test_what_is_not_supported_can_be_left_out_and_is_listed(here, capsys):
    text = TRAIN.replace("--bf16 True", "--bf16 True --torch_compile True --frames 8")
    assert _import(here, text, "--allow-unsupported") == 0
    shown = capsys.readouterr().out
    assert re.search(r"unsupported +line 4 +--torch_compile True: nothing is compiled", shown)
    assert re.search(r"unknown +line 4 +--frames 8", shown)


def test_llamafactory_swift_and_trainer_files(here, capsys):
    (here / "lf.yaml").write_text(
        "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\nlora_rank: 4\nlearning_rate: 1.0e-4\nfp16: true\n"
    )
    assert main(["import", "--from", "llamafactory", "lf.yaml", "--gpus", "2"]) == 0
    stage = yaml.safe_load((here / "conf/recipe/lf.yaml").read_text("utf-8"))["stage"]["lora"]
    assert (stage["lora"]["r"], stage["lora"]["alpha"], stage["optim"]["lr"], stage["global_batch"]) == (
        4,
        8.0,
        1e-4,
        16,
    )
    options = ["--gpus", "1", "--", "sft", "--model", "a/b", "--train_type", "full", "--dataset", "x.json"]
    assert main(["import", "--from", "swift", *options]) == 0
    (here / "args.json").write_text(
        json.dumps({"learning_rate": 3e-5, "max_steps": 40, "bf16": True, "past_index": -1})
    )
    assert main(["import", "--from", "trainer_args", "args.json", "--gpus", "1"]) == 0
    (here / "ck").mkdir()
    (here / "ck" / "trainer_state.json").write_text(
        json.dumps({"max_steps": 9, "log_history": [{"learning_rate": 2e-5}]})
    )
    assert main(["import", "--from", "trainer_state", "ck", "--gpus", "1"]) == 0
    stage = yaml.safe_load((here / "conf/recipe/trainer_state.yaml").read_text("utf-8"))["stage"]["instruct"]
    assert (stage["max_steps"], stage["optim"]["lr"]) == (9, 2e-5)
    assert main(["import", "--from", "trainer_args", "ck", "--gpus", "1"]) != 0


@pytest.mark.parametrize(
    ("recipe", "family"),
    [("bunny_llama3_average", "bunny"), ("llava15_7b_lora", "llava"), ("minicpm_v25_lora", "minicpm")],
)
def test_the_way_back_and_forth_again(here, capsys, recipe, family):
    given = [f"data.{name}.{key}=/x" for name in ("minicpm", "minicpm_eval") for key in ("annotations", "images")]
    assert main(["export-script", recipe, "--for", family, *(given if family == "minicpm" else [])]) == 0
    script = capsys.readouterr().out
    options = ["--config-dir", "conf"]
    assert _import(here, script, "--name", "again") == 0
    capsys.readouterr()
    assert main(["export-script", "again", "--for", family, *options]) == 0
    again = capsys.readouterr().out
    assert again.replace("again", recipe) == script
    assert "not said" not in script


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stage.instruct.data=[llava_mix665k,llava_558k]", "data: llava_558k, besides the first"),
        ("stage.instruct.max_steps=5", "epochs: 1.0, which end before max_steps"),
        ("stage.instruct.optim.decay_steps=5", "optim.decay_steps: 5"),
        ("stage.instruct.loss=token_mean", "loss: token_mean"),
    ],
)
def test_what_a_script_cannot_say_stands_in_its_head(here, capsys, override, said):
    assert main(["export-script", "llava15_7b", "--for", "llava", override]) == 0
    assert re.search(rf"^# not said by these flags: .*{re.escape(said)}", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("recipe", "family"),
    [("llava15_7b_lora", "llava"), ("bunny_llama3_average", "bunny"), ("minicpm_v25_lora", "minicpm")],
)
def test_what_a_script_cannot_say_of_adapters_stands_in_its_head(here, capsys, recipe, family):
    data = ("minicpm", "minicpm_eval") if family == "minicpm" else ()
    given = [f"data.{name}.{key}=/x" for name in data for key in ("annotations", "images")]
    run = compose([f"+recipe={recipe}", *given], [])
    name = next(name for name, stage in run.stage.items() if getattr(stage, "lora", None) is not None)
    asked = {
        "tune.tower": "lora", "lora.dora": "true", "lora.rslora": "true", "lora.rank_pattern": "{q_proj: 2}",
        "lora.alpha_pattern": "{q_proj: 2.0}", "tune.llm_last": "3", "tune.tower_last": "2",
        "optim.optimizer": "adamw_8bit", "ema": "{decay: 0.9, every: 1, result: false}",
    }  # fmt: skip
    overrides = [f"++stage.{name}.{key}={value}" for key, value in asked.items()]
    assert main(["export-script", recipe, "--for", family, *given, *overrides]) == 0
    said = re.findall(r"^# not said by these flags: (.*)$", capsys.readouterr().out, re.MULTILINE)
    for key in asked:
        assert any(line.startswith(f"stage.{name}.{key}: ") for line in said), key


STATE = {
    "max_steps": 9, "num_train_epochs": 3, "train_batch_size": 2, "logging_steps": 5, "save_steps": 4,
    "epoch": 1.5, "global_step": 6, "best_metric": None, "total_flos": 1e9, "is_world_process_zero": True,
    "log_history": [{"learning_rate": 1e-5, "step": 1}, {"learning_rate": 2e-5, "step": 5}, {"loss": 1.0}],
}  # fmt: skip


def test_every_value_of_a_trainers_state_is_accounted_for(here, capsys):
    (here / "trainer_state.json").write_text(json.dumps(STATE), encoding="utf-8")
    assert main(["import", "--from", "trainer_state", ".", "--gpus", "1", "--report", "json", "--name", "again"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {account["flag"].split()[0]: account["verdict"] for account in report["accounts"]}
    given = sum(value is not None for value in STATE.values())
    assert report["flags"] == len(report["accounts"]) == given + 1  # the learning rate is of the history
    assert {found["--global_step"], found["--epoch"], found["--log_history"]} == {"no effect"}
    assert report["counts"]["unknown"] == 0
    stage = yaml.safe_load((here / "conf/recipe/again.yaml").read_text("utf-8"))["stage"]["instruct"]
    assert (stage["epochs"], stage["max_steps"], stage["optim"]["lr"], stage["micro_batch"]) == (None, 9, 2e-5, 2)


@pytest.mark.parametrize(
    ("source", "content", "said"),
    [
        ("llamafactory", "- a\n- b\n", "KEY: VALUE lines"),
        ("llamafactory", "a: [1, 2\n", "not YAML"),
        ("llamafactory", "a: !!python/object:os.system {}\n", "not YAML"),
        ("llamafactory", "learning_rate: 1.0e-4\nlearning_rat: 2.0\n", "--learning_rate is near"),
        ("trainer_args", "[1]", "not a table of values"),
        ("trainer_args", "{", "not JSON"),
        ("trainer_args", '{"learning_rate": "high"}', "'high' is no float"),
        ("trainer_state", "{}", "no values of a training"),
        ("trainer_state", '{"log_history": 5}', "no values of a training"),
    ],
)
def test_argument_files_that_are_none(here, capsys, source, content, said):
    (here / "file.json").write_text(content, encoding="utf-8")
    assert main(["import", "--from", source, "file.json", "--gpus", "1"]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "conf").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "swift", "--", "sft", "x"], "'x' belongs to no option"),
        (["--from", "swift", "--", "sft"], "no options of swift"),
        (["--from", "swift", "--gpus", "1", "--", "--model", "m", "--lora_rnk", "4"], "--lora_rank is near"),
        (["--from", "llamafactory", "no.yaml"], "takes one file, no 'no.yaml'"),
        (["--from", "trainer_state", "."], "no trainer_state.json there"),
        (["--from", "trainer_args", "a", "b"], "takes one file, 2 files"),
    ],
)
def test_options_and_files_that_are_not_there(here, capsys, words, said):
    assert main(["import", *words]) == 2
    assert said in capsys.readouterr().err


class _Calls:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_a_pickle_is_values_or_it_is_refused(here, capsys):
    torch.save(_Calls(), here / "training_args.bin")
    assert main(["import", "--from", "trainer_args", "training_args.bin", "--gpus", "1"]) != 0
    error = capsys.readouterr().err
    assert "it holds more than values" in error
    assert "system" in error
    assert "args.json" in error
    assert not (here / "hacked").exists()
