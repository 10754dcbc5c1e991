"""What to type after a run: commands that work as they are pasted, with everything that this run was given."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from vlmrun import kinds, store
from vlmrun.config.schema import TrainStage
from vlmrun.names import WEIGHTS
from vlmrun.run.pipeline import Run

_SET = ("PYTHONPATH", "VLMRUN_ALLOW", "VLMRUN_DATA", "VLMRUN_OUTPUT")
_AROUND = (1 / 3, 3.0)  # rates to try beside the one in use


def lines(made: Run, overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """Talk with the last model, see where it came from, and try other rates of the stage that was trained last."""
    models = [item for item in made.outcomes if (item.folder / WEIGHTS).is_dir()]
    if not models:
        return []
    newest = [folder for folder, item in store.artifacts(made.root) if item.name == models[-1].name][-1:]
    best = models[-1].name if newest == [models[-1].folder] else models[-1].folder.name
    elsewhere = "" if made.root == Path("outputs").resolve() else f" --output {shlex.quote(os.path.relpath(made.root))}"
    images = sorted(store.stages_dir(made.root).glob("*/data/images/test/*.png"))[:1]
    image = shlex.quote(os.path.relpath(images[0])) if images else "IMAGE"
    variables = "".join(f"{name}={shlex.quote(os.environ[name])} " for name in _SET if name in os.environ)
    found = [
        f"{variables}vlmrun chat {best}{elsewhere} --image {image} --prompt 'Describe the image.'",
        f"vlmrun ls {best}{elsewhere}",
    ]
    trained = [item.name for item in made.outcomes if kinds.of_artifact(item.artifact.kind).trains]
    stage = made.config.stage.get(trained[-1]) if trained else None
    if isinstance(stage, TrainStage):
        found.append(variables + _sweep(f"stage.{trained[-1]}.optim.lr", stage.optim.lr, overrides, config_dirs))
    return found


def _sweep(key: str, rate: float, overrides: Sequence[str], config_dirs: Sequence[Path]) -> str:
    """The run again, with rates around its own."""
    kept = [text for text in overrides if text.lstrip("+").partition("=")[0] != key]
    options = [f"--config-dir={folder}" for folder in config_dirs]
    rates = ",".join(f"{rate * factor:.1e}".replace(".0e", "e").replace("e-0", "e-") for factor in _AROUND)
    return shlex.join(["vlmrun", "-m", *options, *kept, f"{key}={rates}"])
