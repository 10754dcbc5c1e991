"""Stage keys: they ignore what only moves work about, and change with everything else, downstream included."""

import pytest

from vlmrun import graph
from vlmrun.config.marks import is_volatile
from vlmrun.config.schema import HardwareConfig, TrainStage
from vlmrun.errors import ConfigError
from vlmrun.run import identity, pipeline


def keys(run):
    planned, problems = graph.plan(run)
    assert problems == []
    return identity.keys(planned, run)


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_the_same_run_has_the_same_keys(smoke):
    assert keys(smoke()) == keys(smoke())


VOLATILE = {
    "micro_batch": "8", "zero": "3", "engine": "plain", "gradient_checkpointing": "true", "save_steps": "7",
    "save_total_limit": "3", "log_steps": "9", "workers": "1", "offload": "cpu",
    "loss_head": "plain", "loss_chunk": "999",
    "prefetch": "3",
    "image_cache": "pictures", "tower_cache": "features", "record_losses": "true",
    "image_background": "'#000000'",  # of data that vlmrun draws
    "deepspeed": "{reduce_bucket_size: 5000}", "offload_checkpoints": "true",
    "save_async": "false",
    "eval": "{steps: 2, data: [shapes_test], max_samples: 8, generate: 0, max_new_tokens: 4}",
}  # fmt: skip


def test_every_volatile_field_is_listed_here():
    marked = {name for name, field in TrainStage.model_fields.items() if is_volatile(field)}
    assert marked == set(VOLATILE)


@pytest.mark.parametrize("field", VOLATILE)
def test_volatile_fields_leave_every_key_alone(smoke, field):
    assert keys(smoke()) == keys(smoke(f"stage.instruct.{field}={VOLATILE[field]}"))


def test_hardware_leaves_keys_alone_but_for_precision(smoke):
    marked = {name for name, field in HardwareConfig.model_fields.items() if is_volatile(field)}
    assert marked == set(HardwareConfig.model_fields) - {"gpu", "precision"}
    assert keys(smoke()) == keys(smoke("hardware.threads=2", "hardware.launcher=torchrun", "hardware.gpu=a100_80g"))
    assert changed(keys(smoke()), keys(smoke("hardware.precision=bf16"))) >= {"pretrain", "eval_average"}


def test_a_rate_changes_its_stage_and_what_comes_of_it(smoke):
    assert changed(keys(smoke()), keys(smoke("stage.lora.optim.lr=0.5"))) == {
        "lora", "merge", "average", "eval_merge", "eval_average",
    }  # fmt: skip


def test_transfers_that_round_change_the_key(smoke):
    rounded = "stage.pretrain.deepspeed.zero_quantized_weights=true"
    assert "pretrain" in changed(keys(smoke("stage.pretrain.zero=3")), keys(smoke("stage.pretrain.zero=3", rounded)))
    assert keys(smoke()) == keys(smoke(rounded)), "below ZeRO-3 there are none"


@pytest.mark.parametrize(
    "override",
    [
        "stage.pretrain.epochs=2.0", "stage.pretrain.loss=micro_mean", "stage.pretrain.global_batch=64",
        "stage.pretrain.image_aspect=pad", "stage.pretrain.template=micro", "stage.pretrain.seed=9", "seed=9",
        "model/connector=linear", "model.max_length=64", "data.shapes_captions.prepare.n_train=100",
    ],
)  # fmt: skip
def test_what_changes_the_result_changes_the_key(smoke, override):
    assert {"pretrain", "instruct", "average"} <= changed(keys(smoke()), keys(smoke(override)))


def test_the_best_model_depends_on_how_it_is_chosen(smoke):
    def best(**asked):
        values = {"steps": 2, "data": "[shapes_test]", "max_samples": 8, "generate": 0, "max_new_tokens": 4} | asked
        told = ", ".join(f"{name}: {value}" for name, value in values.items())
        return keys(smoke(f"stage.instruct.eval={{{told}}}", "stage.instruct.keep_best=loss"))

    assert "instruct" in changed(keys(smoke()), best())
    assert "instruct" in changed(best(), best(steps=3))
    assert "instruct" in changed(best(), best(data="[shapes_lora_b]"))
    assert best() == best()


def test_a_mean_of_micro_batches_depends_on_their_size(smoke):
    before = keys(smoke("stage.pretrain.loss=micro_mean"))
    after = keys(smoke("stage.pretrain.loss=micro_mean", "stage.pretrain.micro_batch=8"))
    assert "pretrain" in changed(before, after)


def test_the_content_of_a_data_file_is_part_of_the_key(smoke, tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[]")
    overrides = ["data=[shapes_captions,shapes_instruct,shapes_lora_a,shapes_lora_b,shapes_test,llava]",
                 f"data.llava.annotations={file}", f"data.llava.images={tmp_path}",
                 "stage.lora.data=[llava]"]  # fmt: skip
    before = keys(smoke(*overrides))
    file.write_text("[1]")
    assert changed(before, keys(smoke(*overrides))) == {"lora", "merge", "average", "eval_merge", "eval_average"}


def test_the_folder_of_the_pictures_is_part_of_the_key(smoke, tmp_path):
    (tmp_path / "a.json").write_text("[]")
    overrides = ["data=[shapes_captions,shapes_instruct,shapes_lora_a,shapes_lora_b,shapes_test,llava]",
                 f"data.llava.annotations={tmp_path}/a.json", "stage.lora.data=[llava]"]  # fmt: skip
    before, after = (keys(smoke(*overrides, f"data.llava.images={tmp_path}/{name}")) for name in ("a", "b"))
    assert "lora" in changed(before, after)


def test_files_of_one_name_in_a_prepared_folder_are_told_apart(smoke):
    before, after = (keys(smoke(f"data.shapes_captions.annotations={name}/captions.json")) for name in ("x", "y"))
    assert "pretrain" in changed(before, after)


def test_a_tokenizer_of_its_own_is_part_of_the_key(smoke, tmp_path):
    import shutil

    from vlmrun.config.paths import locate

    shutil.copytree(locate("builtin:micro-llm"), tmp_path / "own")
    overrides = ["model/llm=pico", f"model.llm.tokenizer={tmp_path}/own"]
    before = keys(smoke(*overrides))
    file = tmp_path / "own" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    assert "pretrain" in changed(before, keys(smoke(*overrides)))


def test_a_change_in_the_middle_of_a_part_is_noticed(smoke, tmp_path):
    import shutil

    from vlmrun.config.paths import locate

    shutil.copytree(locate("builtin:micro-llm"), tmp_path / "own")
    before = keys(smoke(f"model.llm.path={tmp_path}/own"))
    weights = tmp_path / "own" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    assert "pretrain" in changed(before, keys(smoke(f"model.llm.path={tmp_path}/own")))


def test_the_engine_changes_a_bf16_result(smoke):
    bf16 = "hardware.precision=bf16"
    assert "pretrain" in changed(keys(smoke(bf16)), keys(smoke(bf16, "stage.pretrain.engine=plain")))


def test_the_weights_of_a_part_are_part_of_the_key(smoke, tmp_path):
    import shutil

    from vlmrun.config.paths import locate

    shutil.copytree(locate("builtin:micro-tower"), tmp_path / "tower")
    before = keys(smoke(f"model.tower.path={tmp_path}/tower"))
    weights = tmp_path / "tower" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "pretrain" in changed(before, keys(smoke(f"model.tower.path={tmp_path}/tower")))


SEARCH = [
    "+stage@stage.search=search", "stage.search.models=[merge,merge2]", "stage.search.data=[shapes_test]",
    "stage.search.divisions=2",
]  # fmt: skip


def test_a_search_and_an_average_are_known_by_all_that_changes_them(smoke):
    before = keys(smoke(*SEARCH))
    assert changed(before, keys(smoke(*SEARCH, "stage.search.batch=3"))) == set()
    for override in ("stage.search.divisions=3", "stage.search.score=accuracy_unseen", "stage.search.max_samples=5"):
        assert changed(before, keys(smoke(*SEARCH, override))) == {"search"}
    assert "search" in changed(before, keys(smoke(*SEARCH, "stage.lora.optim.lr=3e-3")))
    assert "search" in changed(before, keys(smoke(*SEARCH, "model.template=vicuna_v1")))
    for override in (
        "stage.average.rules=[{tensors: tower, weights: [1, 0]}]",
        "stage.average.method.sum=any",
        "stage.average.models=[merge2,merge]",
    ):
        assert changed(before, keys(smoke(*SEARCH, override))) == {"average", "eval_average"}


def test_a_base_model_is_a_parent_by_what_it_is(smoke):
    ties = ["stage/method@stage.average.method=ties", "stage.average.base_model=instruct"]
    found = keys(smoke(*ties))
    assert "average" in changed(found, keys(smoke(*ties[:1], "stage.average.base_model=pretrain")))
    assert "average" in changed(found, keys(smoke(*ties, "stage.instruct.optim.lr=1e-3")))


def test_a_key_that_does_nothing_is_in_no_stage_key_and_may_be_left_out(smoke):
    """Fields added later are marked Neutral: what was made before them keeps its folder."""
    neutral = {"min_lr": None, "decay_steps": None, "weight_decay_end": None, "power": 1.0, "warmup_from": 0.0}
    run = smoke()
    kept = identity.stable(run.stage["pretrain"])
    assert not neutral.keys() & kept["optim"].keys()
    assert "order" not in kept
    described = run.stage["pretrain"].optim.model_dump()
    without = {name: value for name, value in described.items() if name not in neutral}
    assert type(run.stage["pretrain"].optim).model_validate(without) == run.stage["pretrain"].optim
    for override in ("optim.min_lr=1e-5", "optim.decay_steps=900", "optim.warmup_from=1e-6"):
        assert "pretrain" in changed(keys(run), keys(smoke(f"stage.pretrain.{override}")))


@pytest.fixture
def own(smoke, tmp_path):
    """Keys of a smoke run whose captions are a file of the user's, with further overrides."""
    file, folder = tmp_path / "f.json", tmp_path / "images"
    file.write_text("[]")
    folder.mkdir()
    entry = "data.shapes_captions"
    places = (f"{entry}.prepare=null", f"{entry}.annotations={file}", f"{entry}.images={folder}")
    return lambda *overrides: keys(smoke(*places, *overrides))


def test_how_images_are_seen_is_in_keys_but_where_nothing_can_be_seen_two_ways(smoke, own):
    """A key without it means upstream's way, as in keys of published recipes. Drawn data have no odd images."""
    upstream, black = "stage.pretrain.compat.images=upstream", "stage.pretrain.image_background='#000000'"
    assert changed(keys(smoke()), keys(smoke(upstream))) == set()
    assert "pretrain" in changed(own(), own(upstream))
    assert "pretrain" in changed(own(), own(black))
    assert changed(own(upstream), own(upstream, black)) == set()
    stage = smoke(upstream).stage["pretrain"]
    assert not {"images", "image_background"} & {*identity.stable(stage), *identity.stable(stage.compat)}
    left_out = {name: value for name, value in stage.compat.model_dump().items() if name != "images"}
    assert type(stage.compat).model_validate(left_out).images == "upstream"  # as it was before there was a choice


def test_roots_and_limits_of_images_are_in_keys_only_when_given(own, tmp_path):
    entry = "data.shapes_captions"
    assert changed(own(), own(f"{entry}.image_megapixels=64.0")) == set()
    assert "pretrain" in changed(own(), own(f"{entry}.image_megapixels=9.0"))
    assert "pretrain" in changed(own(), own(f"{entry}.image_roots=[{tmp_path}]"))


def test_ignored_keys_are_in_keys_only_when_given(own):
    entry = "data.shapes_captions"
    assert changed(own(), own(f"{entry}.ignore_keys=[]")) == set()
    assert "pretrain" in changed(own(), own(f"{entry}.ignore_keys=[foo]"))


@pytest.mark.parametrize("annotations", ["none.json", "/", "/etc/passwd/x.json"])
def test_a_stage_that_is_left_out_needs_no_files_and_all_others_keep_their_keys(smoke, annotations):
    words = ["data.shapes_lora_a.prepare=null", f"data.shapes_lora_a.annotations={annotations}"]
    config = smoke(*words, "only=[pretrain,lora2]")
    gone = {"lora", "merge", "average", "eval_merge", "eval_average"}
    assert keys(config) == {name: key for name, key in keys(smoke()).items() if name not in gone}
    with pytest.raises(ConfigError, match=r"stage 'merge', or one that it starts from, reads a file that is not here"):
        pipeline.prepare(config).stage_folder("merge")
    with pytest.raises(OSError, match=annotations):
        keys(smoke(*words))
