"""`vlmrun recipes`, as a user calls it."""

import json

from vlmrun.config.compose import conf_dir


def test_all_recipes_are_listed_with_their_choices(vlmrun):
    done = vlmrun("recipes", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {path.stem for path in (conf_dir() / "recipe").glob("*.yaml")}
    average = rows["bunny_llama3_average"]
    assert set(average["stages"]) == {"pretrain", "lora", "lora2", "merge", "merge2", "average"}
    assert average["gpus"] == "8 x a100_80g"
    assert rows["kollava_v1_7b_qlora"]["gpus"] == "4 x rtx3090"
    # Stages and data are those of the pipeline, where the recipe has none of its own.
    assert (average["pipeline"], rows["smoke"]["pipeline"]) == ("bunny_average", "")
    assert rows["kollava_v15_7b"]["data"] == ["kollava_chat", "kollava_mix612k"]
    assert rows["llava15_13b"]["data"] == ["llava_558k", "llava_mix665k"]
    assert rows["denseconnector_dci_7b_v100"]["gpus"] == "8 x v100_32g"
    assert all(row["model"] and row["stages"] and row["about"] for row in rows.values())
    assert all(row["source"] for name, row in rows.items() if name not in ("smoke", "emoji_smollm2"))


def test_the_list_has_a_line_for_each_below_its_family_at_80_columns(vlmrun):
    done = vlmrun("recipes", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    for path in (conf_dir() / "recipe").glob("*.yaml"):
        assert f"\n  {path.stem} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all(f"\n{family} (" in f"\n{done.stdout}" for family in ("bunny", "llava15", "minicpm", "vlmrun"))


def test_words_narrow_the_list(vlmrun):
    done = vlmrun("recipes", "bunny", "phi3", "--json")
    names = {row["name"] for row in json.loads(done.stdout)}
    assert names == {path.stem for path in (conf_dir() / "recipe").glob("bunny_phi3*.yaml")}
    shown = vlmrun("recipes", "v100").stdout
    assert "denseconnector_dci_7b_v100" in shown
    assert "bunny" not in shown
    nothing = vlmrun("recipes", "bunny", "vicuna")
    assert nothing.returncode == 2
    assert "no recipe 'bunny vicuna'" in nothing.stderr


def test_one_recipe_tells_its_values_and_what_is_missing(vlmrun):
    done = vlmrun("recipes", "bunny_llama3_recipe2")
    assert done.returncode == 0, done.stderr
    for said in (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "lr 0.0001, connector_lr 1e-05, tower_lr 1e-05, LoRA 128/256, batch 128 (8 x 2 x 8)",
        "bunny_llava_1_4m: missing",
        "license:",
        "vlmrun +recipe=bunny_llama3_recipe2",
    ):
        assert said in done.stdout


def test_what_the_user_must_name_is_said(vlmrun):
    done = vlmrun("recipes", "llava15_7b_task")
    assert done.returncode == 0, done.stderr
    assert "you give: stage.instruct.init_from=..." in done.stdout
    shown = json.loads(vlmrun("recipes", "llava15_7b_task", "--json").stdout)
    assert "stage.instruct.init_from" in shown["unset"]


def test_an_unknown_name_gets_the_nearest(vlmrun):
    done = vlmrun("recipes", "lava15_7b")
    assert done.returncode == 2
    assert "did you mean 'llava15_7b'?" in done.stderr


def test_a_missing_file_says_where_it_comes_from(vlmrun):
    done = vlmrun("check", "+recipe=llava15_7b")
    assert done.returncode == 2
    for said in ("blip_laion_cc_sbu_558k.json", "huggingface.co/datasets", "license", "558,128 records", "hf download"):
        assert said in done.stderr


def test_only_parts_of_the_model_are_said_to_be_trained(vlmrun):
    said = vlmrun("recipes", "llava15_7b_lora").stdout
    parts = [text.partition(" on ")[0] for text in said.split("  train ")[1:]]
    assert parts == ["connector (full)", "llm (lora) + connector (full)"]
