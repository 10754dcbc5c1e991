"""The arithmetic of connectors that make one token of a square of patches. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from vlmrun.arch.connectors import Arithmetic, side_of
from vlmrun.arch.linears import Linear
from vlmrun.arch.sizes import Connector, stack
from vlmrun.errors import ConfigError


@dataclass(frozen=True)
class Squares(Arithmetic):
    """One token of every square of `factor` x `factor` patches."""

    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(f"squares of {self.factor} patches", "model.connector.factor", "2, for instance")

    def tokens(self, n_patches: int) -> int:
        """One for each square.

        Raises:
            ConfigError: when squares do not cover the tower's map.
        """
        side = side_of(n_patches, "this connector")
        if side % self.factor:
            fits = [n for n in range(2, side + 1) if side % n == 0]
            raise ConfigError(
                f"a map of {side} x {side} patches is not made of squares of {self.factor}",
                "model.connector.factor",
                f"factor: {' or '.join(map(str, fits))}, or a tower with another map",
            )
        return (side // self.factor) ** 2


def _require_layers(depth: int) -> None:
    if depth < 1:
        raise ConfigError(f"a connector of depth {depth}", "model.connector.depth", "give 1 or more")


@dataclass(frozen=True)
class PixelShuffle(Squares):
    """The patches of a square side by side, and linear layers over them."""

    depth: int = 2
    norm: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_layers(self.depth)

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """Every layer over every square."""
        wide, tokens = vision_dim * self.factor**2, self.tokens(n_patches)
        linears, saved = stack([wide, *[llm_dim] * self.depth], tokens, bias=self.bias)
        return Connector(linears, tokens, saved + tokens * wide * self.norm, 2 * wide * self.norm)


@dataclass(frozen=True)
class Merger(Squares):
    """Qwen2-VL: a norm of every patch, then two layers over the patches of a square."""

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """The first layer is as wide as a square."""
        wide, tokens = vision_dim * self.factor**2, self.tokens(n_patches)
        linears, saved = stack([wide, wide, llm_dim], tokens)
        return Connector(linears, tokens, saved + tokens * wide, 2 * vision_dim)


@dataclass(frozen=True)
class Pooled(Squares):
    """The mean of every square, perhaps a norm, and linear layers.

    Attributes:
        norm: Gemma 3's RMS norm in front of the layers.
    """

    factor: int = 4
    depth: int = 2
    norm: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_layers(self.depth)

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """Every layer over every mean."""
        tokens = self.tokens(n_patches)
        linears, saved = stack([vision_dim, *[llm_dim] * self.depth], tokens, bias=self.bias)
        return Connector(linears, tokens, saved + tokens * vision_dim * self.norm, vision_dim * self.norm)


@dataclass(frozen=True)
class Abstractor(Arithmetic):
    """Honeybee's C-Abstractor: convolutions around an average to any square number of tokens.

    Attributes:
        n_tokens: that come out, a square number.
        hidden: channels of the convolutions.
        depth: residual blocks before and after the average.
    """

    n_tokens: int = 144
    hidden: int = 1024
    depth: int = 3

    def __post_init__(self) -> None:
        side_of(self.n_tokens, "the C-Abstractor's n_tokens")
        _require_layers(self.depth)
        if self.hidden < 1:
            raise ConfigError(f"convolutions of {self.hidden} channels", "model.connector.hidden", "1024, for instance")

    @property
    def side(self) -> int:
        """Edge of the map that comes out."""
        return side_of(self.n_tokens, "the C-Abstractor's n_tokens")

    def tokens(self, n_patches: int) -> int:
        """As many as asked for, of any square map."""
        side_of(n_patches, "the C-Abstractor")
        return self.n_tokens

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """Blocks over all patches, as many over the tokens, and two layers over these."""
        tokens = self.tokens(n_patches)
        made = [_block(self.hidden if i else vision_dim, self.hidden, n_patches) for i in range(self.depth)]
        made += [_block(self.hidden, self.hidden, tokens)] * self.depth
        linears, saved = stack([self.hidden, llm_dim, llm_dim], tokens)
        return Connector(
            tuple(layer for block in made for layer in block.linears) + linears,
            tokens,
            saved + sum(block.saved for block in made),
            sum(block.extra for block in made),
        )


def _block(before: int, width: int, rows: int) -> Connector:
    """RegNet's block: a convolution is a linear layer over every place, whose input is what it looks at there."""
    squeezed = max(1, round(before * 0.25))
    short = before != width
    linears = (
        (Linear("", before, width), rows),
        (Linear("", 9, width), rows),  # 3 x 3 of each channel
        (Linear("", width, squeezed, bias=True), 1),
        (Linear("", squeezed, width, bias=True), 1),
        (Linear("", width, width), rows),
        *(((Linear("", before, width), rows),) if short else ()),
    )
    # The input, and of every width: what norms, SiLUs, convolutions, the product and the sum were given.
    saved = rows * (before + (9 + short) * width) + 2 * (width + squeezed)
    return Connector(linears, rows, saved, 2 * width * (3 + short))
