"""`vlmrun completion`: a script for a shell, and the words that the script asks for."""

from __future__ import annotations

import sys
from pathlib import Path

from vlmrun.cli.completion import words
from vlmrun.errors import ConfigError, suggest

HELP = """\
usage: vlmrun completion bash|zsh|fish

Prints a script that completes verbs, options, recipes, groups
(model/connector=), keys (stage.lora.optim.), stages and artifacts.

examples:
  eval "$(vlmrun completion bash)"      in ~/.bashrc
  eval "$(vlmrun completion zsh)"       in ~/.zshrc, after compinit
  vlmrun completion fish > ~/.config/fish/completions/vlmrun.fish
"""


def main(arguments: list[str]) -> int:
    """Prints the script of a shell; after `words --`, candidates for the last of the words given, one a line.

    Raises:
        ConfigError: for a shell that is not known.
    """
    if arguments[:2] == ["words", "--"]:
        sys.stdout.writelines(f"{word}\n" for word in words.candidates(arguments[2:]))
        return 0
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(HELP)
        return 0
    if arguments[0] not in words.SHELLS:
        what = f"no completion for {arguments[0]!r}"
        raise ConfigError(what, "vlmrun completion", suggest(arguments[0], words.SHELLS, noun="shells"))
    sys.stdout.write((Path(__file__).parent / f"vlmrun.{arguments[0]}").read_text("utf-8"))
    return 0
