"""What is tried, as a table: overrides of one short training, what it needs, and how far its losses may be off.

All train the micro model on drawn shapes, in the order of the reference: plain PyTorch in fp32 on the CPU. Tolerances
are of the largest difference of a step's loss, which begins at about 6: fp32 differs in the order of sums, bf16 keeps 8
bits and fp16 11, and optimizer state in 8 bits is rounded by blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32, FP16, BF16, ROUNDED = 2e-3, 0.05, 0.15, 0.15

_STAGE = "stage.pretrain"
_LORA = "{r: 8, alpha: 16.0, dropout: 0.0, targets: all-linear, bias: none, modules_to_save: []}"
REFERENCE = "plain, fp32, CPU"


@dataclass(frozen=True)
class Check:
    """One training.

    Attributes:
        overrides: on top of those all have; `hardware.gpu` is the machine's unless they name it.
        tolerance: of the losses; None: they need not be those of the reference, only finite and falling.
        packages: modules that must be installed.
        gpus: how many; 0: it runs on a CPU as well. A machine without any tries several ranks on its CPU.
        capability: the least that the GPU must have.
    """

    name: str
    overrides: tuple[str, ...]
    tolerance: float | None
    packages: tuple[str, ...] = ()
    gpus: int = 1
    capability: tuple[int, int] = (0, 0)


def _stage(**values: str) -> tuple[str, ...]:
    return tuple(f"{_STAGE}.{name}={value}" for name, value in values.items())


def _ranks(n: int, *more: str) -> tuple[str, ...]:
    return (f"hardware.ranks_per_node={n}", "hardware.launcher=torchrun", *more)


COMMON = (
    "+recipe=smoke", "only=[pretrain]", "hardware=cpu", "data.shapes_captions.prepare.n_train=32",  # two epochs
    *_stage(max_steps="8", global_batch="8", micro_batch="4", log_steps="1", save_steps="100"),
    f"{_STAGE}.optim.lr=1e-3", f"{_STAGE}.tune.llm=full",
)  # fmt: skip

_PLAIN = _stage(engine="plain")
_BF16, _FP16 = ("hardware.precision=bf16",), ("hardware.precision=fp16",)
_AMPERE = (8, 0)

CHECKS = (
    Check(REFERENCE, (*_PLAIN, "hardware.gpu=cpu"), FP32, gpus=0),
    Check("plain, fp32", _PLAIN, FP32, gpus=0),
    Check("plain, bf16", (*_PLAIN, *_BF16), BF16, gpus=0),
    Check("ZeRO-1, fp32", _stage(zero="1"), FP32, ("deepspeed",), gpus=0),
    Check("ZeRO-2, bf16", (*_stage(zero="2"), *_BF16), BF16, ("deepspeed",), gpus=0),
    Check("ZeRO-3, bf16", (*_stage(zero="3"), *_BF16), BF16, ("deepspeed",), gpus=0),
    Check("ZeRO-2, fp16 with loss scaling", (*_stage(zero="2"), *_FP16), FP16, ("deepspeed",)),
    Check("FSDP, fp32", _stage(engine="fsdp", zero="3"), FP32, gpus=0),
    Check("TensorFloat-32", (*_PLAIN, "hardware.tf32=true"), FP16, capability=_AMPERE),
    Check("attention: eager", (*_PLAIN, "hardware.attention=eager"), FP32, gpus=0),
    Check("attention: flash-attn", (*_stage(zero="2"), *_BF16, "hardware.attention=flash_attention_2"), BF16,
          ("flash_attn", "deepspeed"), capability=_AMPERE),
    Check("attention: flash-attn, packed rows",
          (*_stage(zero="2", packing="{length: 128, method: even_fit, window: 64}"), *_BF16,
           "hardware.attention=flash_attention_2"),
          None, ("flash_attn", "deepspeed"), capability=_AMPERE),
    Check("attention: xformers", (*_PLAIN, "hardware.attention=xformers"), FP32, ("xformers",)),
    Check("loss: Liger", (*_PLAIN, *_BF16, *_stage(loss_head="liger")), BF16, ("liger_kernel",)),
    Check("loss: full logits", (*_PLAIN, *_stage(loss_head="plain")), FP32, gpus=0),
    Check("gradient checkpointing", (*_PLAIN, *_stage(gradient_checkpointing="true")), FP32, gpus=0),
    Check("checkpoints in host memory",
          (*_PLAIN, *_stage(gradient_checkpointing="true", offload_checkpoints="true")), FP32, gpus=0),
    Check("offload with torch's Adam", _stage(zero="2", offload="cpu"), FP32, ("deepspeed",), gpus=0),
    Check("offload with DeepSpeed's Adam",
          (*_stage(zero="2", offload="cpu"), f"{_STAGE}.optim.optimizer=cpu_adam"), FP32,
          ("deepspeed", "ninja"), gpus=0),
    Check("AdamW in 8 bits", (*_PLAIN, f"{_STAGE}.optim.optimizer=adamw_8bit"), ROUNDED, ("bitsandbytes",), gpus=0),
    Check("AdamW in pages", (*_PLAIN, f"{_STAGE}.optim.optimizer=paged_adamw"), FP32, ("bitsandbytes",)),
    Check("QLoRA, 4 bits",
          (*_PLAIN, f"{_STAGE}.tune.llm=qlora", f"{_STAGE}.lora={_LORA}",
           f"{_STAGE}.quant={{bits: 4, type: nf4, double: true}}"),
          None, ("bitsandbytes",), gpus=0),
    Check("features of the tower kept", (*_PLAIN, *_stage(tower_cache="features")), FP32, gpus=0),
    Check("2 ranks, ZeRO-1", (*_stage(zero="1"), *_ranks(2)), FP32, ("deepspeed",), gpus=2),
    Check("2 ranks, ZeRO-2, bf16", (*_stage(zero="2"), *_BF16, *_ranks(2)), BF16, ("deepspeed",), gpus=2),
    Check("2 ranks, ZeRO-3, bf16", (*_stage(zero="3"), *_BF16, *_ranks(2)), BF16, ("deepspeed",), gpus=2),
    Check("2 ranks, FSDP", (*_stage(engine="fsdp", zero="3"), *_ranks(2)), FP32, gpus=2),
    Check("2 ranks, tensor parallel", (*_stage(zero="1"), *_ranks(2, "hardware.tensor_parallel=2")), FP32,
          ("deepspeed",), gpus=2),
    Check("2 ranks, sequence parallel", (*_stage(zero="1"), *_ranks(2, "hardware.sequence_parallel=2")), FP32,
          ("deepspeed",), gpus=2),
)  # fmt: skip
