"""An evaluation killed at random points, on one rank and on two, ends in the answers of an undisturbed one.

`VLMRUN_KILLS=20 VLMRUN_KILL_SEED=7 pytest tests/unit/eval/test_killed_evaluation.py` kills more often, at other points.
"""

import os
import random
import signal

import pytest

from tests.integration import ranks as forked
from tests.integration.ranks import RankError
from vlmrun import artifact
from vlmrun.config.job import StageJob
from vlmrun.eval import predict
from vlmrun.stages import evaluate

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

SEED = int(os.environ.get("VLMRUN_KILL_SEED", "3"))
KILLS = int(os.environ.get("VLMRUN_KILLS", "3"))
# Where a process dies: before a batch is asked, in the middle of a row, before a file takes its name.
PLACES = ("ask", "row", "file")


def killed(text, place, when, rank):
    """Evaluates as a rank does, and dies at the `when`-th call there as by `kill -9`."""
    job = StageJob.model_validate_json(text)
    if rank == int(os.environ["RANK"]):
        ask, row, write = predict.Asker._answer, predict._text, artifact.write_text
        left = [when]

        def now():
            left[0] -= 1
            return left[0] == 0

        def asked(self, batch):
            if now():
                os.kill(os.getpid(), signal.SIGKILL)
            return ask(self, batch)

        def torn(value):
            if now():
                for part in job.path.glob(f"*.parts/rank-{rank}.jsonl"):
                    with part.open("a") as handle:
                        handle.write(row(value)[:20])
                os.kill(os.getpid(), signal.SIGKILL)
            return row(value)

        def written(path, value):
            if now():
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, value)

        predict.Asker._answer = asked if place == "ask" else ask
        predict._text = torn if place == "row" else row
        artifact.write_text = written if place == "file" else write
    evaluate.execute(job)


def finish(text):
    evaluate.execute(StageJob.model_validate_json(text))


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_killed_at_random_points(make_job, n_ranks):
    launcher = {"ranks_per_node": n_ranks, "launcher": "inline" if n_ranks == 1 else "torchrun"}
    job = make_job(hardware=launcher, batch=2)
    finish(make_job(batch=2).to_json())
    calm = {path.name: path.read_bytes() for path in job.path.iterdir()}
    for path in job.path.iterdir():
        path.unlink()
    draw = random.Random(SEED + n_ranks)
    deaths = []
    for _ in range(KILLS):
        point = draw.choice(PLACES), draw.randint(1, 6), draw.randrange(n_ranks)
        try:
            forked.run(killed, n_ranks, job.to_json(), *point)
        except RankError as error:
            deaths.append(f"{point}: {error}")
    assert any("died without a word" in death for death in deaths), (SEED, deaths)
    forked.run(finish, n_ranks, job.to_json())
    assert {path.name: path.read_bytes() for path in job.path.iterdir()} == calm
