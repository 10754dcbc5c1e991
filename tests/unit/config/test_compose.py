"""Composition: everything wrong with the command line is found at once, each with the nearest name."""

import errno
import os
from pathlib import Path

import pytest
from hydra import compose as hydra_compose

from vlmrun.config import compose as composing
from vlmrun.config.compose import compose, conf_dir
from vlmrun.config.validate import validate


def problems_of(*overrides: str, config_dirs: tuple[Path, ...] = ()) -> list:
    composed = compose(overrides, config_dirs)
    _, problems = validate(composed.tree, composed.problems)
    return [*composed.problems, *problems]


def test_the_smoke_recipe_composes_without_problems():
    assert problems_of("+recipe=smoke") == []


def test_every_option_of_the_shipped_groups_is_valid_yaml_with_a_header_or_values():
    assert {path.name for path in conf_dir().iterdir()} == {
        "config.yaml", "model", "data", "benchmark", "stage", "evaluate", "judge", "hardware", "recipe", "pipeline",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ("stage.lora.optim.lrr=1", "unknown key 'lrr'", "did you mean 'stage.lora.optim.lr'?"),
        ("stage.lorra.seed=1", "unknown key 'lorra'", "did you mean 'stage.lora'?"),
        ("model/connector=linar", "model/connector has no option 'linar'", "did you mean 'linear'?"),
        ("+stage.lora.optim.lrate=1.0", "unknown key 'lrate'", "keys: betas"),
        ("+recipee=smoke", "unknown key 'recipee'", "did you mean 'recipe'?"),
        ("stage.lora.zero=7", "7 is not an option of stage.lora.zero", "0, 1, 2, 3"),
        ("stage.lora.micro_batch=two", "should be a valid integer", "change the value"),
        ("stage.lora.gradient_checkpointing=yes", "should be a valid boolean", "true or false"),
        ("+hardware.env.NCCL_P2P_DISABLE=true", "hardware.env.NCCL_P2P_DISABLE = True: ", "change the value"),
        ("model.tiles={grids: [[1, 2], [1, q]], merge: flat}", "model.tiles.grids.1.1 = 'q'", "change the value"),
        ("stage.lora.data=???", "stage.lora.data has no value yet", "stage.lora.data=..."),
        ("a=[", "cannot read the override", "as one text: 'a=\"[\"'; as several values"),
        ("stage.lora.seed=${nothing}", "nothing", "the value it refers to"),
        ("stage.lora.kind=trane", "unknown kind trane", "did you mean 'train'?"),
        ("hardware=null", "hardware is chosen by the name of an option", "hardware=NAME; options: a100_40g"),
        (
            "lr=1e-4",
            "unknown key 'lr'",
            "in full: stage.pretrain.optim.lr, stage.instruct.optim.lr, stage.lora.optim.lr",
        ),
        ("seed=1,2", "seed is given several values", "vlmrun -m"),
        ("~stage", "'stage' cannot be taken out", "leave out ~stage"),
        ("+model.connector.init_std=inf", "init_std", ""),
    ],
)
def test_one_wrong_override_is_one_problem_with_a_remedy(override, what, fix):
    found = problems_of("+recipe=smoke", override)
    assert len(found) == 1, [str(problem) for problem in found]
    assert what in found[0].what
    assert fix in found[0].fix


def test_a_misspelt_recipe_is_reported_and_the_rest_is_checked_with_the_nearest():
    found = problems_of("+recipe=smok", "stage.lora.optim.lrr=1", "stage.lora.zero=9")
    assert [problem.what for problem in found] == [
        "recipe has no option 'smok'",
        "unknown key 'lrr'",
        "9 is not an option of stage.lora.zero",
    ]


def test_a_pipeline_takes_any_model_and_a_recipe_another_pipeline():
    own = compose(["name=mine", "+pipeline=llava15_lora", "model=bunny_phi3", "hardware=cpu"])
    published = compose(["+recipe=llava15_7b_lora"])
    exchanged = compose(["+recipe=llava15_7b", "pipeline=llava15_lora"])
    assert [*own.problems, *published.problems, *exchanged.problems] == []
    assert own.tree["stage"] == published.tree["stage"] == exchanged.tree["stage"]
    assert own.tree["model"]["template"] == "bunny"
    assert exchanged.tree["model"] == published.tree["model"]


def test_what_a_recipe_chooses_goes_before_what_its_pipeline_chooses():
    tree = compose(["+recipe=kollava_v15_7b"]).tree
    assert list(tree["data"]) == ["kollava_chat", "kollava_mix612k"]
    assert tree["stage"]["instruct"]["data"] == ["kollava_mix612k"]
    assert tree["stage"]["instruct"]["image_aspect"] == "pad"


@pytest.mark.parametrize("group", ["recipe", "pipeline"])
def test_a_misspelt_group_that_is_added_is_suggested(group):
    (problem,) = problems_of("+recipe=smoke", f"+{group}e=x")
    assert f"did you mean '{group}'?" in problem.fix


def test_a_pipeline_without_plus_is_told_about_the_plus():
    problem, *_ = problems_of("pipeline=llava15")
    assert "+pipeline=llava15" in problem.fix


def test_a_recipe_without_plus_is_told_about_the_plus():
    (problem,) = problems_of("recipe=smoke")
    assert "+recipe=smoke" in problem.fix


def test_selecting_stages_again_leaves_nodes_without_kind_and_says_to_use_only():
    found = problems_of("+recipe=smoke", "stage=[lora]")
    assert found
    assert all("has no kind" in problem.what and "only=[...]" in problem.fix for problem in found)


def test_nothing_at_all_is_one_problem():
    (problem,) = problems_of()
    assert "nothing to run" in problem.what


def test_a_folder_of_ones_own_adds_options(tmp_path):
    (tmp_path / "model" / "connector").mkdir(parents=True)
    (tmp_path / "model" / "connector" / "mine.yaml").write_text("_target_: my_parts.Mine\nwidth: 3\n")
    composed = compose(["+recipe=smoke", "model/connector=mine"], [tmp_path])
    assert composed.problems == []
    assert composed.tree["model"]["connector"] == {"_target_": "my_parts.Mine", "width": 3}


def test_strict_types_refuse_what_yaml_would_let_pass():
    (problem,) = problems_of("+recipe=smoke", "stage.lora.group_by_modality_length=1")
    assert "group_by_modality_length" in problem.what


def test_an_integer_is_a_fine_float():
    assert problems_of("+recipe=smoke", "stage.lora.epochs=2", "stage.lora.optim.lr=0.001") == []


def test_a_stage_name_cannot_leave_the_output_folder(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "bad.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: micro\n  - override /stage: [pretrain]\n  - _self_\n"
        "stage:\n  pretrain: {data: []}\n  ../../escaped: ${stage.pretrain}\n"
    )
    found = problems_of("+recipe=bad", config_dirs=(tmp_path,))
    assert any("../../escaped" in problem.where + problem.what for problem in found), found


def test_hardware_that_is_chosen_on_the_command_line_goes_before_a_recipes_values():
    plain = compose(["+recipe=kollava_lightning_7b"])
    assert (plain.tree["hardware"]["ranks_per_node"], plain.notes) == (4, [])
    chosen = compose(["+recipe=kollava_lightning_7b", "hardware=cpu"])
    assert chosen.tree["hardware"]["ranks_per_node"] == 1
    assert chosen.notes == ["hardware.ranks_per_node is 1, as hardware=cpu says; the recipe has 4"]
    precise = compose(["+recipe=minicpm_v25_lora", "hardware=h100_bf16"])
    assert precise.tree["hardware"]["precision"] == "bf16"
    explicit = compose(["+recipe=minicpm_v25_lora", "hardware=h100_bf16", "hardware.precision=fp16"])
    assert (explicit.tree["hardware"]["precision"], explicit.notes) == ("fp16", [])


def test_an_attention_kernel_that_a_model_needs_stays():
    chosen = compose(["+recipe=llava_mpt_7b", "hardware=h100_bf16"])
    assert chosen.tree["hardware"]["attention"] == "eager"
    assert "hardware.attention stays eager" in chosen.notes[0]


def test_a_wrong_override_among_many_is_found_in_a_few_compositions(monkeypatch):
    counted = []

    def counting(*given, **named):
        counted.append(named)
        return hydra_compose(*given, **named)

    monkeypatch.setattr(composing, "hydra_compose", counting)
    right = [f"stage.lora.{name}" for name in ("seed=1", "seed=2", "max_steps=3", "save_steps=4", "workers=0")] * 6
    for place in (0, 17, 30):
        counted.clear()
        wrong = [*right[:place], "stage.lora.optim.lrr=1", *right[place:]]
        (problem,) = problems_of("+recipe=smoke", *wrong)
        assert "unknown key 'lrr'" in problem.what
        assert len(counted) <= 3 + 6  # all of them, without it, and to explain it; and 32 are halved six times


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [("name: a\nname: b\n", "found duplicate key name", 3), ("name: [a\n", "expected ',' or ']'", 3),
     ("name: 'a\n", "found unexpected end of stream", 3), ("a: b: c\n", "mapping values are not allowed here", 2)],
)  # fmt: skip
def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path, text, said, line):
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "mine.yaml"
    file.write_text(f"# @package _global_\n{text}")
    for overrides in (["+recipe=mine"], ["+recipe=mine", "hardware=none"], ["hardware=none", "+recipe=mine"]):
        (problem,) = compose(overrides, [tmp_path]).problems
        assert said in problem.what
        assert problem.where == f"{file}:{line}"


def test_a_key_below_null_is_told_how_to_write_it():
    (problem,) = compose(["tracking.wandb.project=x"]).problems
    assert (problem.what, problem.fix) == ("'tracking' is null", "'tracking={wandb: {project: x}}'")


def test_a_name_too_long_for_a_file_is_a_wrong_override():
    (problem,) = problems_of("+recipe=smoke", f"model={'x' * 300}")
    assert "model" in problem.where


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE])
def test_a_file_that_cannot_be_read_is_no_wrong_override(monkeypatch, code):
    def failing(*_, **__):
        raise OSError(code, os.strerror(code), "/somewhere/smoke.yaml")

    monkeypatch.setattr(composing, "hydra_compose", failing)
    (problem,) = compose(["+recipe=smoke", "stage.lora.seed=1"]).problems
    assert (problem.what, problem.where) == (
        f"a configuration file cannot be read: {os.strerror(code)}",
        "/somewhere/smoke.yaml",
    )


def test_a_key_of_an_empty_place_is_told_about_the_plus():
    (problem,) = compose(["+recipe=smoke", "hardware.env.NCCL_DEBUG=INFO"]).problems
    assert problem.fix == "there are none yet: +hardware.env.NCCL_DEBUG=... adds it"
    assert not compose(["+recipe=smoke", "+hardware.env.NCCL_DEBUG=INFO"]).problems
