"""What a user types and reads before anything is trained."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from vlmrun.config import compose as composing

HEAVY = ("torch", "transformers", "deepspeed", "peft", "numpy")


def test_help_names_every_verb(vlmrun):
    done = vlmrun("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("train", "check", "ls", "chat", "--cfg job", "-m", "+recipe=smoke"))
    assert vlmrun().stdout == done.stdout


@pytest.mark.parametrize("arguments", [["ls", "--help"], ["chat", "--help"], ["check", "--help"], ["train", "-h"]])
def test_every_verb_has_help(vlmrun, arguments):
    done = vlmrun(*arguments)
    assert done.returncode == 0
    assert "usage" in done.stdout


def test_version(vlmrun):
    assert vlmrun("--version").stdout.startswith("vlmrun 0.")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["+recipe=smoke", "--cfg", "job"], ["check", "+recipe=smoke"], ["ls"], ["check", "+recipe=smok"]],
)
def test_torch_is_not_imported(tmp_path, arguments):
    code = (
        "import sys; from vlmrun.cli.app import main; main(sys.argv[1:]); "
        f"sys.stderr.write('LOADED ' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.rstrip().endswith("LOADED"), done.stderr


def test_check_loads_neither_clients_of_the_network_nor_what_sweeps_and_reports_need(tmp_path):
    """Each takes a tenth of the time of `check`, or more (benchmarks/startup.py)."""
    heavy = ("httpx", "httpx2", "huggingface_hub.file_download", "jinja2", "psutil", "numba", "rich")
    code = (
        "import sys; from vlmrun.cli.app import main; assert main(['check', '+recipe=bunny_llama3_average']) != 0; "
        f"sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert "vlmrun download google/siglip-so400m-patch14-384" in done.stderr
    assert done.stderr.rstrip().endswith("\n[]"), done.stderr[-300:]


def test_cfg_job_prints_the_whole_truth_as_yaml_and_runs_nothing(vlmrun, tmp_path):
    done = vlmrun("+recipe=smoke", "stage.lora.optim.lr=0.5", "--cfg", "job")
    tree = yaml.safe_load(done.stdout)
    assert tree["stage"]["lora"]["optim"]["lr"] == 0.5
    assert tree["stage"]["lora"]["seed"] == 0, "interpolations are resolved"
    assert tree["model"]["connector"]["_target_"] == "vlmrun.model.connectors.mlp.MLP"
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_also_where_values_are_open_and_names_them_afterwards(vlmrun):
    done = vlmrun("+recipe=minicpm_v25_lora", "--cfg", "job")
    assert yaml.safe_load(done.stdout)["stage"]["lora"]["max_steps"] == 10000
    assert yaml.safe_load(done.stdout)["data"]["minicpm"]["annotations"] == "???"
    assert "data.minicpm.annotations has no value yet" in done.stderr
    assert "no model folder" not in done.stderr, "printing looks at no file"
    assert done.returncode == 2


@pytest.mark.parametrize(("recipe", "updates"), [("smoke", "187 updates"), ("llava15_7b", "2,180 updates")])
def test_a_recipe_says_how_many_updates_it_makes(vlmrun, recipe, updates):
    assert updates in vlmrun("recipes", recipe).stdout


@pytest.mark.parametrize("word", ["~stage", "=", "model.llm.tokens.pad=[1]", "output=", "output=/dev/null"])
def test_a_wrong_word_is_a_problem_with_a_fix(vlmrun, word):
    done = vlmrun("check", "+recipe=smoke", f"++{word}" if "tokens" in word else word)
    assert done.returncode == 2
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_printed_config_is_a_complete_run(vlmrun):
    from vlmrun.config.schema import RunConfig

    RunConfig.model_validate(yaml.safe_load(vlmrun("+recipe=smoke", "--cfg", "job").stdout))


def test_check_lists_the_stages_and_writes_nothing(vlmrun, tmp_path):
    done = vlmrun("check", "+recipe=smoke")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "ok: smoke has no problems"
    assert len(lines) == 14
    assert all(line.startswith("to do") for line in lines[:-1])
    assert list(tmp_path.iterdir()) == []


def test_check_reports_names_and_rules_together(vlmrun):
    done = vlmrun("check", "+recipe=smoke", "stage.lora.optim.lrr=1", "stage.lora.micro_batch=5", "hardware.gpu=a100")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 3
    assert done.stderr.count("  at:  ") == 3
    assert done.stderr.count("  fix: ") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["chek", "+recipe=smoke"], 2, "did you mean 'check'?"),
        (["--cfgg", "+recipe=smoke"], 2, "no option '--cfgg'"),
        (["+recipe=smoke", "--cfg", "hydra"], 2, "--cfg job"),
        (["+recipe=smoke", "--config-dir", "nowhere"], 2, "no folder 'nowhere'"),
        (["ls", "nothing"], 4, "no artifact 'nothing'"),
        (["chat", "nothing", "--image", "a.png"], 4, "no artifact 'nothing'"),
        (["+recipe=smoke", "only=[lora]"], 4, "starts from 'instruct', which is not finished"),
        (["seed=1"], 2, "nothing to run"),
    ],
)
def test_wrong_use_is_a_sentence_with_a_remedy_and_an_exit_code(vlmrun, arguments, code, text):
    done = vlmrun(*arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_closed_pipe_is_no_traceback(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m vlmrun.cli +recipe=smoke --cfg job | head -1",
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_ones_own_connector_is_one_file_and_one_yaml(vlmrun, tmp_path):
    (tmp_path / "my_parts").mkdir()
    (tmp_path / "my_parts" / "__init__.py").write_text("")
    (tmp_path / "my_parts" / "gated.py").write_text(
        "from vlmrun.model.connectors.base import Connector\n\n\n"
        "class Gated(Connector):\n"
        "    def __init__(self, vision_dim, llm_dim, width=2):\n"
        "        super().__init__()\n"
    )
    conf = tmp_path / "conf" / "model" / "connector"
    conf.mkdir(parents=True)
    (conf / "gated.yaml").write_text("_target_: my_parts.gated.Gated\nwidth: 2\n")
    arguments = ["check", "--config-dir", "conf", "+recipe=smoke", "model/connector=gated"]
    refused = vlmrun(*arguments, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert "VLMRUN_ALLOW" in refused.stderr
    allowed = {"PYTHONPATH": str(tmp_path), "VLMRUN_ALLOW": "my_parts"}
    assert vlmrun(*arguments, **allowed).returncode == 0
    wrong = vlmrun(*arguments, "+model.connector.widht=3", **allowed)
    assert "did you mean 'width'?" in wrong.stderr


def test_the_makefile_runs_what_the_readme_names_first():
    readme = (ROOT / "README.md").read_text()
    commands = [line.strip() for line in readme.splitlines() if line.lstrip().startswith("make ")]
    assert [command.split("#")[0].strip() for command in commands[:2]] == ["make run", "make test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_check_of_a_sweep_checks_every_point(vlmrun):
    done = vlmrun("check", "-m", "+recipe=smoke", "stage.lora.micro_batch=4,5", "model/connector=linear,mlp2x_gelu")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "is no multiple of micro_batch 5 x" in done.stderr
    good = vlmrun("check", "-m", "+recipe=smoke", "model/connector=linear,mlp2x_gelu")
    assert good.stdout.count("ok: smoke has no problems") == 2


def test_stages_that_only_leaves_out_are_not_judged(vlmrun):
    wrong = ["check", "+recipe=smoke", "stage.lora.micro_batch=5"]
    assert vlmrun(*wrong).returncode == 2
    assert vlmrun(*wrong, "only=[pretrain]").returncode == 0
    # Nor where the place that is named is the hardware's: adapters are not cut into pieces.
    shared = ["check", "+recipe=smoke", "hardware.ranks_per_node=2", "hardware.tensor_parallel=2"]
    shared += ["hardware.launcher=torchrun"]
    assert vlmrun(*shared).returncode == 2
    assert vlmrun(*shared, "only=[pretrain]", "stage.pretrain.zero=1").returncode == 0


def test_a_launcher_sets_nodes_and_calls_vlmrun_with_what_it_is_given():
    def commands(name):
        text = (ROOT / "launchers" / name).read_text()
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    assert {path.name for path in (ROOT / "launchers").iterdir()} == {
        "slurm.sbatch",
        "multinode.sh",
        "k8s-job.yaml",
        "k8s-serve.yaml",
    }
    assert commands("slurm.sbatch")[-1] == 'exec vlmrun "$@"'
    script = commands("multinode.sh")
    assert script[-1] == 'exec vlmrun "${@:3}"'
    assert {name for line in script for name in re.findall(r"\b([A-Z_]+)=", line)} == {*NODE}
    *_, job = yaml.safe_load_all((ROOT / "launchers" / "k8s-job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["vlmrun"]
    assert {entry["name"] for entry in container["env"]} == {*NODE, "VLMRUN_DATA", "HF_HOME"}
    volumes = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    paths = [entry["value"] for entry in container["env"] if entry["name"] in ("VLMRUN_DATA", "HF_HOME")]
    assert all(path.startswith(f"{volumes['shared']}/") for path in paths), "what pods share is on the volume"
    assert job["spec"]["template"]["spec"]["securityContext"]["fsGroup"] > 0
    keys = {text.partition("=")[0] for text in container["args"]}
    assert keys == {"+recipe", "hardware", "hardware.nodes", "output"}
    nodes = next(text for text in container["args"] if text.startswith("hardware.nodes="))
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(nodes.partition("=")[2])
    assert composing.compose(container["args"]).problems == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_an_image_has_git_and_a_home_for_a_user_without_an_entry_in_passwd(device):
    text = (ROOT / "docker" / f"Dockerfile.{device}").read_text()
    packages = re.findall(r"apt-get install -y --no-install-recommends (.*?) \\", text)
    assert any("git" in each.split() for each in packages)
    environment = dict(re.findall(r"^(?:ENV|   ) ([A-Z_]+)=(\S+)", text, re.MULTILINE))
    assert environment["HOME"] == re.findall(r"^WORKDIR (\S+)", text, re.MULTILINE)[-1]
    assert environment["USER"]


NODE = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
