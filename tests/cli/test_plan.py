"""`vlmrun plan` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlmrun.cli import app as cli


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["plan", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_tables_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "+recipe=llava15_7b")
    assert code == 0
    assert "llava15_7b on 8 x a100_80g, bf16" in out
    assert "6,759,395,328 of 6,759,395,328" not in out  # parts are told apart
    assert "20,979,712 of 20,979,712" in out
    assert "sizes of lmsys/vicuna-7b-v1.5 as published" in out
    line = next(line for line in out.splitlines() if line.startswith("instruct "))
    assert " 516M 383M " in " ".join(line.split()), "tokens, and those of images among them"
    for term in ("gradients", "activations: connector", "gathered weights", "CUDA context, fragmentation"):
        assert f"\n{term} " in out
    for term in ("activations: tower", "logits and loss", "update"):
        assert f"\nat another moment, {term} " in out


def test_json_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "+recipe=smoke", "--json", "stage.instruct.micro_batch=8")
    assert code == 0
    found = json.loads(out)
    assert [one["name"] for one in found["stages"]][:2] == ["pretrain", "instruct"]
    instruct = found["stages"][1]
    assert instruct["batch"]["sequences"] == 8
    assert instruct["memory"]["tensors_bytes"] == sum(instruct["memory"]["terms_bytes"].values())


def test_what_does_not_fit_gets_advice_and_check_warns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["+recipe=llava15_13b", "hardware=a100_40g"]
    _, out, _ = plan(capsys, *words)
    assert "instruct does not fit at micro batch 16" in out
    assert "stage.instruct.micro_batch=4" in out
    _, out, _ = plan(capsys, "+recipe=llava15_7b", "only=[instruct]", "hardware=v100_fp16", "hardware.ranks_per_node=1")
    assert "stage.instruct.offload=cpu  ->" in out
    # 18 bytes of each trained parameter (master, moments, gradient, fp16) and 2 of the tower's.
    assert "113.88 GiB a rank of host memory, fits" in out
    assert cli.main(["check", *words]) == 2  # the data is not here
    assert "a100_40g has 40" in capsys.readouterr().err


def test_records_are_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["+recipe=bunny_llama3_recipe1", "only=[pretrain]", "data.bunny_laion_2m.about.records=null"]
    _, out, _ = plan(capsys, *words)
    assert "all stages: 0.00 hours of training, 0.0 GPU hours (without 1 of 1," in out
    assert "--records bunny_laion_2m=N" in out
    _, out, _ = plan(capsys, *words, "--records", "bunny_laion_2m=2_000_000", "--json")
    assert json.loads(out)["stages"][0]["work"]["steps"] == 2_000_000 // 256


def test_what_a_run_shares_keeps_away_and_packs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    packing = "stage.instruct.packing={length: 4096, method: even_fit, window: 4096}"
    rows = [packing, "stage.instruct.group_by_modality_length=false", "stage.instruct.global_batch=64"]
    away = ["stage.instruct.offload=nvme", "stage.instruct.deepspeed.nvme_path=/no/such/drive"]
    code, out, err = plan(capsys, "+recipe=llava15_7b", "only=[instruct]", "hardware.tensor_parallel=2", *rows, *away)
    assert code == 0, err
    assert "layers shared by 2" in out
    assert "5.3 samples in a row of 4096 tokens, 99.7% of it filled" in out
    assert "on a drive, per rank" in out
    assert "what the drive's buffers take" in out


@pytest.mark.parametrize("at_most", [256, None])
def test_evaluation_during_training_is_counted_when_it_is_known(
    at_most: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "null" if at_most is None else at_most
    asked = (
        f"stage.pretrain.eval={{steps: 100, data: [bunny_695k], max_samples: {told}, generate: 0, max_new_tokens: 8}}"
    )
    unknown = "data.bunny_695k.about.records=null"
    words = [
        "+recipe=bunny_llama3_recipe1",
        "only=[pretrain]",
        asked,
        unknown,
        "--records",
        "bunny_laion_2m=100_000",
        "--json",
    ]
    _, out, _ = plan(capsys, *words)
    found = json.loads(out)
    work, stage = found["stages"][0]["work"], found["stages"][0]["name"]
    assert [one["name"] for one in found["stages"][0]["data"]] == ["bunny_laion_2m", "bunny_695k"]
    assert (work["held_out"] is None) == (at_most is None)
    assert any(line.startswith(f"{stage}: evaluation is not counted") for line in found["assumptions"]) == (
        at_most is None
    )


def test_pictures_are_cut_as_often_as_allowed_and_their_tokens_told(capsys: pytest.CaptureFixture[str]) -> None:
    whole = ["+recipe=llava15_7b", "only=[instruct]"]
    tiles = "model.tiles={grids: [[336, 672], [672, 672]], merge: flat}"
    cut = [*whole, "stage.instruct.image_aspect=anyres", tiles]
    _, out, err = plan(capsys, *cut)
    assert "instruct: every image is cut as often as allowed: 5 pieces, 2880 tokens" in out, err
    _, out, _ = plan(capsys, *whole)
    assert "cut as often" not in out


def test_what_has_no_value_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, "+recipe=minicpm_v25_lora")
    assert code == 2
    assert err.count("data.minicpm.annotations has no value yet") == 1
    assert "???" not in err


def test_a_sweep_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = plan(capsys, "-m", "+recipe=llava15_7b", "only=[instruct]", "stage.instruct.zero=2,3")
    lines = [line for line in out.splitlines() if "instruct " in line]
    assert [line.split()[0] for line in lines] == ["stage.instruct.zero=2", "stage.instruct.zero=3"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["+recipe=smoke", "hardware.gpu=a10"], "unknown gpu 'a10'"),
        (["+recipe=smoke", "stage.instruct.micro_batch=7"], "is no multiple of micro_batch 7 x"),
        (["+recipe=smoke", "stage.instruct.data=[nope]"], "no data 'nope'"),
        (["+recipe=smoke", "hardware.precision=bf16", "stage.instruct.zero=0"], "bf16 with ZeRO 0"),
        (["+recipe=llava15_7b", "model.llm.path=nobody/nothing"], "no model folder 'nobody/nothing' here"),
        (["+recipe=smoke", "--cfg", "job"], "plan prints a plan"),
        (["+recipe=llava15_7b", "hardware.tensor_parallel=3"], "cannot be cut into groups of 3"),
        (["+recipe=llava15_7b", "hardware.tensor_parallel=16"], "cannot be cut into groups of 16"),
        (["+recipe=llava15_7b", "stage.instruct.engine=fsdp", "stage.instruct.zero=1"], "fsdp always cuts"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = plan(capsys, *words)
    assert code != 0
    assert told in err
    assert out == ""


@pytest.mark.parametrize("words", [["--mfu", "3"], ["--price", "much"], ["--records", "7"]])
def test_wrong_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan(capsys, "+recipe=smoke", *words)
    assert "argument --" in capsys.readouterr().err


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from vlmrun.cli import app as cli; "
        "assert cli.main(['plan', '+recipe=llava15_7b', '--json']) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_family_that_only_the_model_tells_about(capsys: pytest.CaptureFixture[str]) -> None:
    config = "{model_type: gpt_neox, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    config += "num_attention_heads: 4, vocab_size: 512, max_position_embeddings: 512}"
    words = ["+recipe=smoke", "model/llm=pico", f"model.llm.config={config}", "--json", "only=[instruct]"]
    code, out, err = plan(capsys, *words)
    assert code == 0, err
    llm = json.loads(out)["stages"][0]["parameters"]["llm"]
    # Two embeddings; two blocks of fused and single projections with biases, and two norms each; a last norm.
    block = 32 * 96 + 96 + 32 * 32 + 32 + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert llm == {"total": 2 * 512 * 32 + 2 * block + 64, "trained": 2 * 512 * 32 + 2 * block + 64}
