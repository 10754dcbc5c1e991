"""`vlmrun chat`: a question about an image and its answer, or a conversation."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vlmrun import back, store
from vlmrun.cli.options import at_least_one, output_option


def main(arguments: list[str]) -> int:
    """Answers `--prompt` on stdout, or talks until the input ends."""
    parser = argparse.ArgumentParser("vlmrun chat", description="Talk with a model about a picture.")
    parser.add_argument("artifact", help="a stage name, name-key, key, or folder")
    parser.add_argument("--image", help="picture to talk about")
    parser.add_argument("--prompt", help="ask this, print the answer, and stop")
    parser.add_argument("--max-new-tokens", type=at_least_one, default=64)
    output_option(parser)
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = store.find(Path(options.output), options.artifact)
    back.chat(folder, Path(options.image) if options.image else None, options.prompt, options.max_new_tokens)
    return 0
