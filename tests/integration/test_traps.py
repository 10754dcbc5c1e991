"""Each trap of the platform notes (section 1) that applies to this trainer, sprung on purpose or shown to be avoided.

Not here because nothing of ours can step into them: T7 (accelerate), T9 (4-bit), T14 (the launcher's environment, to
be tested there), T16 (nothing is compiled), T19 (seeds follow from the step). T17 and T18 are in test_parallel.py;
T8 is test_parts_made_at_random in test_engines.py; T11, T12 are in test_resume.py; T3 also in test_zero.py.
"""

import json
import socket
import subprocess
import sys
import time

import pytest

from tests.integration import ranks as forked
from tests.integration.jobs import compare, execute, losses, make_job, rows, run, write_records
from tests.integration.ranks import RankError

pytestmark = pytest.mark.ranks

LOSS_ATOL = 1e-5  # fp32


def _built(text, look):
    """Builds a job's engine in a session and returns what `look` finds."""
    from vlmrun.config.job import StageJob
    from vlmrun.train import dist, engine, model, optim

    job = StageJob.model_validate(json.loads(text))
    with dist.session(job.hardware):
        config = model.deepspeed_config(job, job.stage)
        vlm = model.load(job, job.stage, config).vlm
        groups = optim.groups(vlm, job.stage.optim)
        return look(engine.create(vlm, groups, job.stage, job.hardware, config))


def _clipping(engine):
    return engine.inner.gradient_clipping()


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_t1_no_clipping_means_none_not_one(tmp_path, max_grad_norm):
    job = make_job(tmp_path, max_grad_norm=max_grad_norm)
    assert forked.run(_built, 1, job.to_json(), _clipping, group=False) == [max_grad_norm]


def test_t1_clipping_acts_as_in_plain_torch(tmp_path):
    """SGD-like settings would show a scale at once; AdamW hides it, so two different limits must differ and agree."""
    plain = run(tmp_path, "plain", engine="plain", max_grad_norm=0.05, eps=1e-1)
    clipped = run(tmp_path, "zero2", 2, zero=2, max_grad_norm=0.05, eps=1e-1)
    free = run(tmp_path, "free", 2, zero=2, max_grad_norm=0.0, eps=1e-1)
    assert losses(clipped) == pytest.approx(losses(plain), abs=LOSS_ATOL)
    assert abs(losses(free)[-1] - losses(plain)[-1]) > 1e-2
    assert rows(free)[0]["grad_norm"] == pytest.approx(rows(plain)[0]["grad_norm"], rel=1e-5)


def test_t2_bf16_without_zero_is_refused(tmp_path):
    job = make_job(tmp_path, zero=0, precision="bf16")
    with pytest.raises(RankError, match="bf16 needs ZeRO stage 1 or higher"):
        forked.run(execute, 1, job.to_json(), group=False)


def _first_move(text):
    """Mean size of the first update with a rate above zero, in units of the rate."""
    from vlmrun.train import engine

    seen = {}

    class Spy(engine.DeepSpeedEngine):
        def step(self, factor, weight_decay=None):
            parameter = self.vlm.llm.model.layers[0].mlp.up_proj.weight
            before = self.finest(parameter).clone()
            norm = super().step(factor)
            if factor > 0 and not seen:
                seen["move"] = float((self.finest(parameter) - before).abs().mean()) / (self.groups[0].lr * factor)
            return norm

    engine.DeepSpeedEngine = Spy
    execute(text)
    return seen["move"]


def test_t2_the_first_bf16_update_has_full_size(tmp_path):
    job = make_job(tmp_path, zero=1, precision="bf16", warmup_ratio=0.0, weight_decay=0.0, max_steps=2)
    # AdamW's first update is the rate, wherever a gradient is well above eps; the broken one is 0.744 of it.
    assert forked.run(_first_move, 1, job.to_json(), group=False)[0] == pytest.approx(1.0, abs=0.05)


def _stage_three_expected(text):
    from vlmrun.zero import config as zero

    original = zero.deepspeed_config

    def misspelt(stage, hardware, *, hidden_dim):
        config = original(stage, hardware, hidden_dim=hidden_dim)
        config["zero_optimisation"] = config.pop("zero_optimization")
        return config

    zero.deepspeed_config = misspelt
    execute(text)


def test_t3_an_engine_at_another_stage_than_configured_is_refused(tmp_path):
    job = make_job(tmp_path, zero=2)
    with pytest.raises(RankError, match=r"zero_optimization_stage\(\) == stage.zero"):
        forked.run(_stage_three_expected, 1, job.to_json(), group=False)


PICTURES = (0, 1, 3)  # of a micro batch


def _every_pair_of_micro_batches(folder):
    """Records in whose order rank 0 and rank 1 get micro batches of three with every pair of numbers of pictures."""
    write_records(folder, 6 * len(PICTURES) ** 2, text_only="none")
    records = json.loads((folder / "data.json").read_text("utf-8"))
    wanted = [n for first in PICTURES for second in PICTURES for n in (first, second)]
    for index, record in enumerate(records):
        if index % 3 >= wanted[index // 3]:
            del record["image"]
            record["conversations"][0]["value"] = "Which colour?"
    (folder / "data.json").write_text(json.dumps(records), "utf-8")


def _in_file_order(text):
    from vlmrun.data import order

    order.shuffled = lambda counts, weights, seed: lambda epoch: range(sum(counts))
    return execute(text)


@pytest.fixture(scope="module")
def every_pair(tmp_path_factory):
    """The reference: one process, the same nine updates."""
    folder = tmp_path_factory.mktemp("pairs")
    _every_pair_of_micro_batches(folder)
    tune = {"llm": "full", "tower": "full", "connector": "full"}
    common = {"micro_batch": 3, "global_batch": 6, "epochs": 1.0, "tune": tune}
    plain = make_job(folder, "plain", engine="plain", **common)
    forked.run(_in_file_order, 1, plain.to_json(), group=False)
    assert len(losses(plain)) == len(PICTURES) ** 2
    return folder, common, plain


@pytest.mark.parametrize(
    "engine", [{"zero": 0}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"engine": "fsdp", "zero": 3}], ids=str
)
def test_t4_ranks_with_other_numbers_of_pictures_neither_hang_nor_diverge(every_pair, engine):
    folder, common, plain = every_pair
    job = make_job(folder, f"two{'-'.join(map(str, engine.values()))}", ranks_per_node=2, **common, **engine)
    forked.run(_in_file_order, 2, job.to_json(), timeout=60)
    compare(plain, job)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_t5_unequal_answers_on_two_ranks_weigh_by_token(tmp_path, zero):
    write_records(tmp_path, 24, text_only="none")
    common = {"global_batch": 4, "micro_batch": 1, "max_steps": 6}
    plain = make_job(tmp_path, "plain", engine="plain", **(common | {"micro_batch": 4}))
    forked.run(execute, 1, plain.to_json(), group=False)
    job = make_job(tmp_path, "two", zero=zero, ranks_per_node=2, **common)
    forked.run(execute, 2, job.to_json())
    assert losses(job) == pytest.approx(losses(plain), abs=LOSS_ATOL)


def test_t6_fewer_ranks_than_configured_are_refused(tmp_path):
    job = make_job(tmp_path, ranks_per_node=2)
    with pytest.raises(RankError, match=r"LaunchError.*1 ranks were started, 2 are configured"):
        forked.run(execute, 1, job.to_json(), group=False)


def _linear(text):
    import torch

    before = torch.nn.functional.linear
    execute(text)
    return torch.nn.functional.linear is before


def test_t10_zero_three_leaves_torchs_linear_alone(tmp_path):
    job = make_job(tmp_path, zero=3, max_steps=2)
    assert forked.run(_linear, 1, job.to_json(), group=False) == [True]


def _load_nothing(engine, folder):
    from pathlib import Path

    engine.load(Path(folder))


def test_t13_nothing_to_load_is_an_error(tmp_path):
    job = make_job(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RankError, match=r"CheckpointError.*nothing to load"):
        forked.run(_load_from_empty, 1, job.to_json(), str(tmp_path / "empty"), group=False)


def _load_from_empty(text, folder):
    _built(text, lambda engine: _load_nothing(engine, folder))


def _no_shm(text):
    import deepspeed.ops

    execute(text)
    return deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"]


def test_nothing_is_compiled(tmp_path, monkeypatch):
    """The switch is not public: DeepSpeed must still have it, and no extension may have been built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    job = make_job(tmp_path, max_steps=2, ranks_per_node=2)
    assert forked.run(_no_shm, 2, job.to_json()) == [False, False]
    assert not (tmp_path / "extensions").exists()


WORKER = """
import json, os, sys
from tests.integration.jobs import execute
os.environ["TORCH_EXTENSIONS_DIR"] = sys.argv[2]
execute(open(sys.argv[1]).read())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "precision"), [(1, "bf16"), (3, "fp32")])
def test_a_fresh_process_is_quiet_and_needs_no_compiler(tmp_path, zero, precision):
    """stdout stays empty, stderr has our lines only: no INFO, no FutureWarning. PATH holds no compiler and no ninja."""
    job = make_job(tmp_path, "quiet", max_steps=3, zero=zero, precision=precision)
    (tmp_path / "job.json").write_text(job.to_json(), "utf-8")
    environment = {"PATH": "/nowhere", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = ":".join(filter(None, sys.path))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path / "job.json"), str(tmp_path / "extensions")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    ours = ("part ", "llm ", "tower ", "connector ", "all ", "quiet ")
    assert [line for line in lines if not line.startswith(ours)] == []
    assert not (tmp_path / "extensions").exists()
    assert time.monotonic() - began < 60


def _by_environment(text, port):
    """As under torchrun: the trainer itself joins the group and leaves it."""
    import os

    import torch.distributed

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    execute(text)
    return torch.distributed.is_initialized()


def test_t15_ranks_leave_in_order(tmp_path):
    """Without barrier and destroy about a third of such runs aborted at exit; `ranks` checks the exit codes."""
    for number in range(4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = make_job(tmp_path, f"run{number}", ranks_per_node=2, max_steps=2, zero=1)
        assert forked.run(_by_environment, 2, job.to_json(), port, group=False) == [False, False]


def test_t20_frozen_parameters_are_not_in_a_checkpoint(tmp_path):
    tune = {"llm": "freeze", "tower": "freeze", "connector": "full"}
    small = run(tmp_path, "connector", tune=tune, save_steps=6)
    large = run(tmp_path, "all", save_steps=6)

    def size(job):
        return sum(p.stat().st_size for p in (job.path / "checkpoints" / "step-6" / "deepspeed").glob("*.pt"))

    assert size(small) < 60_000 < size(large)  # 1,600 parameters at 16 bytes, against 40,672


def _die(text):
    import os
    import signal

    from vlmrun.train import dist, loop

    original = loop.seed

    def seed(number, step, rank):
        if step == 2 and dist.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        original(number, step, rank)

    loop.seed = seed
    execute(text)


def test_a_rank_that_dies_is_reported_by_the_other(tmp_path):
    job = make_job(tmp_path, "dead", ranks_per_node=2, max_steps=6)
    with pytest.raises(RankError, match=r"(?s)LaunchError: error: rank 0 lost another rank.*logs/rank-\*"):
        forked.run(_die, 2, job.to_json())


def _stall(text):
    from vlmrun.train import dist, loop

    original = loop.seed

    def seed(number, step, rank):
        if step == 2 and dist.rank() == 1:
            time.sleep(10)
        original(number, step, rank)

    loop.seed = seed
    execute(text)


def _stall_by_environment(text, port):
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    _stall(text)


def test_a_rank_that_hangs_is_reported_after_the_configured_time(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = make_job(tmp_path, "stalled", ranks_per_node=2, max_steps=6, timeout_seconds=3)
    began = time.monotonic()
    with pytest.raises(RankError, match=r"LaunchError: error: rank 0 lost another rank"):
        forked.run(_stall_by_environment, 2, job.to_json(), port, group=False)
    assert time.monotonic() - began < 25
