"""The arithmetic of the built-in connectors, which `vlmrun.model.connectors` computes with. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from vlmrun.arch.connectors import Arithmetic, side_of
from vlmrun.arch.linears import Linear
from vlmrun.arch.sizes import Connector, stack
from vlmrun.errors import ConfigError, suggest


@dataclass(frozen=True)
class Identity(Arithmetic):
    """Features go into the LLM as they are."""

    TRAINABLE: ClassVar[bool] = False

    def check_widths(self, vision_dim: int, llm_dim: int) -> None:
        """Both are one."""
        if vision_dim != llm_dim:
            raise ConfigError(
                f"features of width {vision_dim} do not fit an LLM of width {llm_dim} without a connector",
                "model.connector",
                "model/connector=linear",
            )

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """Nothing."""
        return Connector((), n_patches, 0)


@dataclass(frozen=True)
class MLP(Arithmetic):
    """`depth` linear layers, `hidden` wide inside; None: as wide as the LLM.

    Attributes:
        init_std: of the normal distribution that each layer's weights are drawn from; None: as torch draws them.
    """

    depth: int = 2
    hidden: int | None = None
    bias: bool = True
    init_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(
                f"an MLP connector of depth {self.depth}", "model.connector.depth", "give 1 (linear) or more"
            )
        if self.init_std is not None and len(self.init_std) != self.depth:
            what = f"{len(self.init_std)} deviations for {self.depth} layers"
            raise ConfigError(what, "model.connector.init_std", "one for each layer")

    def widths(self, vision_dim: int, llm_dim: int) -> list[int]:
        """In front of, between and behind the layers."""
        return [vision_dim, *[self.hidden or llm_dim] * (self.depth - 1), llm_dim]

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """Every layer over every patch."""
        linears, saved = stack(self.widths(vision_dim, llm_dim), n_patches, bias=self.bias)
        return Connector(linears, n_patches, saved)


@dataclass(frozen=True)
class Dense(Arithmetic):
    """DenseConnector: shallow layers beside the selected one."""

    KINDS: ClassVar[tuple[str, ...]] = ("sti", "sci", "dci")
    SELECTED: ClassVar[int] = -2  # the layer LLaVA selects
    POOL: ClassVar[int] = 8
    LAYERS_KEY: ClassVar[str] = "model.connector.shallow"

    kind: Literal["sti", "sci", "dci"]
    depth: int = 2
    shallow: Sequence[int] = (7, 15)

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            fix = suggest(self.kind, self.KINDS, noun="kinds")
            raise ConfigError(f"no dense connector {self.kind!r}", "model.connector.kind", fix)

    def tokens(self, n_patches: int) -> int:
        """One for each patch, and under sti the averages, of which an incomplete last one is left out."""
        if self.kind != "sti":
            return n_patches
        if n_patches < self.POOL:
            raise ConfigError(
                f"sti averages {self.POOL} patches, the tower gives {n_patches}", "model.connector", "dci"
            )
        return n_patches + len(self.shallow) * (n_patches // self.POOL)

    def wanted_layers(self, n_layers: int) -> list[int]:
        """The selected layer first, then the others in ascending order."""
        return [self.SELECTED, *(range(n_layers // 2 * 2) if self.kind == "dci" else self.shallow)]

    def joined(self, vision_dim: int) -> int:
        """Channels after the layers were joined."""
        return vision_dim * {"sti": 1, "sci": 1 + len(self.shallow), "dci": 3}[self.kind]

    @property
    def mlp(self) -> MLP:
        """What projects them."""
        return MLP(self.depth)

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """Those of the MLP over all tokens."""
        return self.mlp.sizes(self.joined(vision_dim), llm_dim, self.tokens(n_patches))


@dataclass(frozen=True)
class Grouped(Arithmetic):
    """Four neighbouring patches become one token."""

    GROUP: ClassVar[int] = 4

    order: Literal["channel", "token"]

    def tokens(self, n_patches: int) -> int:
        """A quarter of the patches."""
        if n_patches % self.GROUP:
            raise ConfigError(
                f"{n_patches} patches cannot be taken {self.GROUP} at a time",
                "model.connector",
                "a tower whose patches divide by 4, or another connector",
            )
        return n_patches // self.GROUP

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """One layer over four patches side by side."""
        rows, wide = self.tokens(n_patches), self.GROUP * vision_dim
        return Connector(((Linear("", wide, llm_dim, True), rows),), rows, wide * rows)


@dataclass(frozen=True)
class SPP(Arithmetic):
    """Linear layers around a 2 x 2 mean of the map of patches."""

    # What each version does in turn; a number is a linear layer.
    STEPS: ClassVar[dict[str, tuple[int | str, ...]]] = {
        "v1": (1, "pool", 2),
        "v2": (1, 2, "pool"),
        "v3": (0, "pool", 1, 2),
    }

    version: Literal["v1", "v2", "v3"]

    def tokens(self, n_patches: int) -> int:
        """A quarter of the map; a last row and column that have no neighbor are left out."""
        return (side_of(n_patches, "spp") // 2) ** 2

    @staticmethod
    def widths(vision_dim: int, llm_dim: int) -> tuple[tuple[int, int], ...]:
        """In and out, of each of the three layers that a version may use."""
        return ((vision_dim, vision_dim), (vision_dim, llm_dim), (llm_dim, llm_dim))

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """Layers in front of the mean see all patches, those behind it what is left."""
        widths, rows, linears = self.widths(vision_dim, llm_dim), n_patches, []
        for step in self.STEPS[self.version]:
            if isinstance(step, int):
                linears.append((Linear("", *widths[step], True), rows))
            else:
                rows = self.tokens(n_patches)
        return Connector(tuple(linears), rows, sum(linear.n_in * n for linear, n in linears))


@dataclass(frozen=True)
class LDP(Arithmetic):
    """MobileVLM's projector: two linear layers, then two depthwise convolutions, the second of stride 2."""

    def tokens(self, n_patches: int) -> int:
        """A quarter of the map, an odd edge rounded up."""
        return ((side_of(n_patches, "ldp") + 1) // 2) ** 2

    @staticmethod
    def squeezed(width: int, by: int = 8) -> int:
        """Channels inside an excitation: the multiple of `by` nearest to a quarter, at most a tenth below it."""
        wanted = width // 4
        near = max(by, (wanted + by // 2) // by * by)
        return near + by if near < 0.9 * wanted else near

    def sizes(self, vision_dim: int, llm_dim: int, n_patches: int) -> Connector:
        """A pointwise convolution is a linear layer over the map; an excitation sees one row."""
        few, out, squeezed = self.tokens(n_patches), llm_dim, self.squeezed(llm_dim)
        linears, saved = stack([vision_dim, out, out], n_patches)
        excitation = (Linear("", out, squeezed, True), Linear("", squeezed, out, True))
        blocks = []
        for n in (n_patches, few):
            blocks += [(Linear("", out, out), n), *((linear, 1) for linear in excitation)]
            saved += 7 * out * n  # into the depthwise, its norm, the gate, the excitation, the pointwise and its norm
        # Depthwise weights and two norms, twice.
        return Connector((*linears, *blocks), few, saved, extra=2 * (9 * out + 4 * out))


@dataclass(frozen=True)
class Resampler(Arithmetic):
    """MiniCPM-V's: a fixed number of trained queries."""

    ADAPTIVE: ClassVar[bool] = True
    HEAD: ClassVar[int] = 128  # width of a head, unless `heads` says how many there are

    queries: int = 96
    heads: int | None = None

    def tokens(self, n_patches: int) -> int:
        """The queries, whatever the image."""
        return self.queries

    def n_heads(self, llm_dim: int) -> int:
        """Of the attention."""
        return self.heads or max(1, llm_dim // self.HEAD)

    def check_widths(self, vision_dim: int, llm_dim: int) -> None:
        """Heads, and the sines and cosines of two coordinates, divide the LLM's width."""
        heads = self.n_heads(llm_dim)
        if llm_dim % heads or llm_dim % 4 or self.queries < 1:
            raise ConfigError(
                f"a resampler of {self.queries} queries and {heads} heads at width {llm_dim}",
                "model.connector",
                "at least one query, heads that divide the LLM's width, a width that 4 divides",
            )


@dataclass(frozen=True)
class FixedResampler(Resampler):
    """That of MiniCPM-V 2.0, whose queries lie in a square."""

    queries: int = 64

    def __post_init__(self) -> None:
        if self.side**2 != self.queries:
            raise ConfigError(
                f"queries lie in a square, and {self.queries} form none",
                "model.connector",
                f"model.connector.queries={self.side**2} or {(self.side + 1) ** 2}",
            )

    @property
    def side(self) -> int:
        """Queries along an edge."""
        return math.isqrt(max(0, self.queries))
