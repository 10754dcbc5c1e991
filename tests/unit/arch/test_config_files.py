"""The small files of a model part: what they tell, and that a damaged one is a sentence with its name."""

import json
import struct

import pytest

from tests.pico import LLAMA
from vlmrun.arch import config_files, families, towers
from vlmrun.config.paths import read_config
from vlmrun.config.schema import Target
from vlmrun.errors import CheckpointError


def part(**arguments) -> Target:
    return Target.model_validate({"_target_": "vlmrun.model.llm.load", **arguments})


def tower(**arguments) -> Target:
    return Target.model_validate({"_target_": "vlmrun.model.towers.clip.Clip", **arguments})


def safetensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def test_the_shipped_parts_tell_their_sizes():
    llm = part(path="builtin:micro-llm")
    facts = config_files.llm_facts(llm)
    assert facts.linear_layers is not None
    assert "q_proj" in facts.linear_layers
    tokenizer = config_files.tokenizer_facts(llm)
    assert tokenizer is not None
    assert 0 < tokenizer.n_ids <= facts.vocab_size
    assert towers.facts(tower(path="builtin:micro-tower")).n_patches > 0


def test_linear_layers_of_an_unknown_family_come_from_the_headers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "hidden_size": 4, "vocab_size": 8}))
    shapes = {"a.mix.weight": [4, 4], "a.norm.weight": [4], "embed_tokens.weight": [8, 4]}
    header = {"__metadata__": {}, **{name: {"shape": shape} for name, shape in shapes.items()}}
    (tmp_path / "model.safetensors").write_bytes(safetensors(header))
    assert config_files.tensor_shapes(tmp_path) == shapes
    assert config_files.llm_facts(part(path=str(tmp_path))).linear_layers == {"mix"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        safetensors({"a": {"shape": [1]}})[:-3],
        safetensors([1]),
        safetensors({"a": {}}),
        safetensors({"a": {"shape": 3}}),
        safetensors({"a": 3}),
        struct.pack("<Q", 2) + b"\xff\xfe",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_damaged_safetensors_file_is_named(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a whole safetensors file") as caught:
        config_files.tensor_shapes(tmp_path)
    assert caught.value.problems[0].where == str(file)
    assert caught.value.problems[0].fix


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"model": {"voc',
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"model": {"vocab": null}}',
        b'{"model": {"vocab": [[]]}}',
        b'{"model": {"vocab": {"a": "b"}}}',
        b'{"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}',
        b'{"model": {"vocab": {}}, "added_tokens": "x"}',
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a whole tokenizer") as caught:
        config_files.tokenizer_facts(part(path=str(tmp_path)))
    assert caught.value.problems[0].where == str(file)
    assert caught.value.problems[0].fix


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{", ""])
def test_a_config_is_an_object(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not") as caught:
        read_config(str(tmp_path))
    assert caught.value.problems[0].where == str(tmp_path / "config.json")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a b/c", "x/..", "a/b", "nothing"])
def test_a_path_that_leads_nowhere_is_named(path):
    with pytest.raises(CheckpointError, match="no model folder"):
        read_config(path)


@pytest.mark.parametrize("value", ["x", 0, -1, 1.5, True, None, [64]])
@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "image_size", "patch_size", "num_hidden_layers"])
def test_a_size_of_a_wrong_type_is_named(key, value):
    sizes = dict.fromkeys(("hidden_size", "vocab_size", "image_size", "patch_size", "num_hidden_layers"), 8)
    facts, target = (config_files.llm_facts, part) if key == "vocab_size" else (towers.facts, tower)
    facts(target(config=sizes))
    with pytest.raises(CheckpointError, match=f"{key} is "):
        facts(target(config={**sizes, key: value}))
    with pytest.raises(CheckpointError, match=f"has no '{key}'"):
        facts(target(config={name: size for name, size in sizes.items() if name != key}))


@pytest.mark.parametrize("extra", [{"model_type": []}, {"max_position_embeddings": None}])
def test_what_need_not_be_stated_may_be_odd(extra):
    facts = config_files.llm_facts(part(config={"hidden_size": 8, "vocab_size": 8, **extra}))
    assert facts.linear_layers is None
    assert facts.max_positions is None


@pytest.mark.parametrize("odd", [{"text_config": 3}, {"max_position_embeddings": "many"}])
def test_an_odd_value_is_named(odd):
    with pytest.raises(CheckpointError, match=next(iter(odd))):
        config_files.llm_facts(part(config={"hidden_size": 8, "vocab_size": 8, **odd}))


@pytest.mark.parametrize("arguments", [{"path": 7}, {"config": 3}, {"path": "x", "tokenizer": [1]}])
def test_a_part_of_wrong_types_is_not_looked_into(arguments):
    assert not config_files.is_told(part(**arguments))
    with pytest.raises(CheckpointError):
        config_files.llm_facts(part(**arguments))


def test_the_sizes_of_gpt2_and_its_kin_are_known_by_their_own_names():
    facts = config_files.llm_facts(
        part(config={"model_type": "gpt2", "n_embd": 32, "n_positions": 256, "vocab_size": 512})
    )
    assert (facts.hidden_dim, facts.max_positions, facts.vocab_size) == (32, 256, 512)


@pytest.mark.parametrize("family", ["llama", "gemma", "a family of the future"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_tied_where_the_config_says_so(family, tied):
    """Of a family whose layout is known as of one whose is not, alone or as a part of a whole model."""
    config = LLAMA | {"model_type": family, "vocab_size": 320, "tie_word_embeddings": tied}
    assert families.is_tied(config) is tied
    assert families.is_tied({"text_config": config}) is tied
