"""`vlmrun convert` as a user types it."""

import json


def test_a_model_is_exported_compared_and_talked_with(vlmrun, tmp_path, tiny_run):
    source = tiny_run.stage("merge")
    done = vlmrun("convert", str(source), "hf", "--to", "hf_llava")
    assert done.returncode == 0, done.stderr
    assert "proof: plain transformers gives equal pixels" in done.stdout
    done = vlmrun("convert", str(source), "hf", "--check")
    assert (done.returncode, done.stdout) == (0, f"{source} and hf hold the same model\n"), done.stderr
    config = json.loads((tmp_path / "hf/config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "hf/vlmrun.json").unlink()
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    done = vlmrun("convert", "hf", "again", "--to", "native")
    assert done.returncode == 4
    assert "is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "again").exists()
    done = vlmrun("convert", "hf", "again")
    assert done.returncode == 2
    assert "one of the arguments --to --check is required" in done.stderr


def test_an_intermediate_checkpoint_of_lora_is_chatted_with_after_conversion(vlmrun, tmp_path, tiny_run):
    stage = tiny_run.stage("lora")
    steps = sorted((stage / "checkpoints").glob("step-*"))
    assert steps
    done = vlmrun("convert", str(steps[0]), "early", "--to", "native", "--from", "training", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "early/adapter/adapter_model.safetensors").is_file()
    picture = next((tiny_run.stage("shapes") / "data/images/test").iterdir())
    done = vlmrun("chat", "early", "--image", str(picture), "--prompt", "What is it?", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
