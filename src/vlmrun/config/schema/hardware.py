"""Where a stage runs."""

from __future__ import annotations

from typing import Annotated, Literal

from vlmrun.config.marks import Volatile
from vlmrun.config.schema.base import Count, Few, Node, Precision, Seconds


class HardwareConfig(Node):
    """Where a stage runs. Everything but `precision` only moves work about."""

    gpu: str  # a name in hardware/gpus.py; cpu is one of them
    nodes: Annotated[Few, Volatile]
    ranks_per_node: Annotated[Few, Volatile]
    precision: Precision
    attention: Annotated[Literal["eager", "sdpa", "flash_attention_2", "xformers"], Volatile]
    tensor_parallel: Annotated[Few, Volatile]  # ranks that share every layer of the LLM
    sequence_parallel: Annotated[Few, Volatile]  # ranks that share every sequence
    tf32: Annotated[bool, Volatile]  # TensorFloat-32 products on GPUs that have them
    env: Annotated[dict[str, str | int], Volatile]  # of the ranks; which names is up to checks/environment.py
    launcher: Annotated[Literal["inline", "torchrun", "deepspeed", "srun"], Volatile]
    hostfile: Annotated[str | None, Volatile]  # of several nodes: lines `HOST slots=N`
    threads: Annotated[Few, Volatile]  # CPU threads per rank
    timeout_seconds: Annotated[Seconds, Volatile]  # longest wait for another rank
    hang_seconds: Annotated[Seconds | None, Volatile]  # without progress in a step: all ranks are ended; null: never
    max_restarts: Annotated[Count, Volatile]  # of a job whose rank died or hung, from its last checkpoint

    @property
    def data_ranks(self) -> int:
        """Ranks, or groups of ranks that share a model or a sequence, that read samples of their own."""
        return self.nodes * self.ranks_per_node // (self.tensor_parallel * self.sequence_parallel)
