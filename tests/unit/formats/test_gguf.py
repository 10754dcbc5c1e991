"""GGUF files, written here with llama.cpp's own writer, are read to the weights they were made of."""

import json

import numpy as np
import pytest
import torch

from tests.pico import LLAMA, WIDE, pico_llm
from tests.unit.formats.conftest import differences, to
from vlmrun.errors import CheckpointError
from vlmrun.formats import table
from vlmrun.weights.reader import Reader

gguf = pytest.importorskip("gguf")

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def _name(name):
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight"
    number, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{NAMES[rest]}.weight"


def _turned(name, weight, heads):
    """llama.cpp keeps the two halves of every rotated pair beside each other."""
    n = heads.get(name.split(".")[-2])
    if n is None:
        return weight
    return weight.reshape(n, 2, weight.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _write(path, llm, quantised=()):
    tokenizer = json.loads((llm / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"] | {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(LLAMA["max_position_embeddings"])
    writer.add_embedding_length(WIDE["hidden_size"])
    writer.add_block_count(2)
    writer.add_feed_forward_length(WIDE["intermediate_size"])
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(4)
    reader = Reader(llm)
    for name in reader.names():
        weight = _turned(name, reader.get(name).numpy(), {"q_proj": 4, "k_proj": 2})
        if name in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_name(name), np.ascontiguousarray(weight))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


def test_weights_and_tokenizer_come_back(tmp_path):
    from transformers import AutoTokenizer

    llm = pico_llm(tmp_path / "llm", **WIDE)
    (tmp_path / "theirs").mkdir()
    packed = "model.layers.1.mlp.up_proj.weight"
    _write(tmp_path / "theirs/pico.gguf", llm, {packed})
    assert table.detect(tmp_path / "theirs") == table.detect(tmp_path / "theirs/pico.gguf") == "gguf"
    to(tmp_path / "theirs", tmp_path / "hf", "hf")
    assert [what.partition(":")[0] for what in differences(llm, tmp_path / "hf")] == [f"llm.{packed}"]
    back = Reader(tmp_path / "hf").get(packed)
    assert (back - Reader(llm).get(packed)).abs().max() < 0.01
    to(tmp_path / "theirs/pico.gguf", tmp_path / "half", "hf", dtype=torch.bfloat16)
    assert Reader(tmp_path / "half").dtype(packed) == torch.bfloat16
    text = "What colour is the shape? red"
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (llm, tmp_path / "hf"))
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours(text, add_special_tokens=False)["input_ids"]


def test_what_is_no_whole_gguf_file_is_refused(tmp_path):
    path = tmp_path / "torn.gguf"
    _write(path, pico_llm(tmp_path / "llm", **WIDE))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="gguf"):
        to(path, tmp_path / "no", "hf")
    path.write_bytes(b"GGUF and nothing else")
    with pytest.raises(CheckpointError, match="gguf"):
        to(path, tmp_path / "no", "hf")
    assert not (tmp_path / "no").exists()
    with pytest.raises(CheckpointError, match="gguf is not written"):
        to(tmp_path / "llm", tmp_path / "no", "gguf")
