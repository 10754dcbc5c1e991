"""Make data files: run the preparation that a data entry names, into the stage's own folder. Never loads torch."""

from __future__ import annotations

import shutil

from vlmrun.build import build
from vlmrun.config.job import StageJob
from vlmrun.config.schema import PrepareStage
from vlmrun.errors import DataError
from vlmrun.outcome import Result

FOLDER = "data"


def execute(job: StageJob) -> Result:
    """Calls the source with an empty folder; what it writes there is the artifact.

    Raises:
        DataError: when it wrote nothing.
    """
    assert isinstance(job.stage, PrepareStage)
    folder = job.path / FOLDER
    if folder.exists():  # left by an attempt that was interrupted; half a data set must not be mixed with a new one
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    build(job.stage.source, folder=folder)
    n_files = sum(path.is_file() for path in folder.rglob("*"))
    if n_files == 0:
        raise DataError(
            f"{job.stage.source.target} wrote no file", str(folder), "a preparation writes its files into `folder`"
        )
    return Result({"n_files": n_files}, roots=(FOLDER,))
