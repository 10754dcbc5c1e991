"""LLaMA-Factory's and ms-swift's own arguments; both find the parts of a Hugging Face model themselves."""

from __future__ import annotations

from vlmrun.importers import options
from vlmrun.importers.meaning.draft import Draft

_ATTENTION = {"fa2": "flash_attention_2", "flash_attn": "flash_attention_2", "flash_attention_2": "flash_attention_2",
              "sdpa": "sdpa", "eager": "eager", "disabled": "eager"}  # fmt: skip
# Ours: LLaMA-Factory's name, ms-swift's.
_NAMES = {
    "type": ("finetuning_type", "train_type"),
    "targets": ("lora_target", "target_modules"),
    "bits": ("quantization_bit", "quant_bits"),
    "llm": ("freeze_language_model", "freeze_llm"),
    "tower": ("freeze_vision_tower", "freeze_vit"),
    "connector": ("freeze_multi_modal_projector", "freeze_aligner"),
    "attention": ("flash_attn", "attn_impl"),
    "model": ("model_name_or_path", "model"),
}


def _flag(draft: Draft, ours: str) -> str:
    if ours == "type" and "tuner_type" in draft.given:
        return "tuner_type"
    return _NAMES[ours][draft.family == "swift"]


def kind(draft: Draft) -> None:
    """lora, qlora or instruct."""
    adapters = draft.text(_flag(draft, "type")) == "lora"
    few = _flag(draft, "bits") in draft.given
    draft.kind = ("qlora" if few else "lora") if adapters else "instruct"


def settle(draft: Draft) -> None:
    """Model, data and tuning."""
    _model(draft)
    _tuning(draft)
    _data(draft)


def _model(draft: Draft) -> None:
    flag = _flag(draft, "model")
    path = draft.text(flag)
    found = options.option("llm", path) if path else None
    if found:
        draft.group("llm", found, flag)
    draft.settle(flag, "differs" if not found else "taken", f"{path}: convert it first (vlmrun convert --to native)")
    if path and not found:
        draft.set("stage.init_from", path, note="a Hugging Face model: vlmrun convert it first")
    draft.settle("template", "differs", "the template is the model's own; stage.template names another")
    draft.settle("stage", "taken" if draft.text("stage") in ("sft", "pt") else "unsupported", "supervised tuning")
    attention = draft.text(_flag(draft, "attention")) if _flag(draft, "attention") in draft.given else None
    if attention in _ATTENTION:
        draft.set("hardware.attention", _ATTENTION[attention], _flag(draft, "attention"))
    draft.settle(_flag(draft, "attention"), "no effect", "chosen by the hardware")
    if "torch_dtype" in draft.table and "bf16" not in draft.given and "fp16" not in draft.given:
        names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
        draft.set("hardware.precision", names.get(draft.text("torch_dtype") or "", "bf16"), "torch_dtype")
    draft.settle("torch_dtype", "no effect", "bf16 or fp16 say it")


def _tuning(draft: Draft) -> None:
    how = draft.text(_flag(draft, "type"))
    if how in ("lora", "full"):
        draft.settle(_flag(draft, "type"), "taken", f"stage kind {draft.kind}")
    else:
        draft.settle(_flag(draft, "type"), "unsupported", f"everything is tuned, not by {how}")
    frozen = draft.boolean(_flag(draft, "llm"))
    draft.set(
        "stage.tune.llm",
        draft.kind if draft.kind != "instruct" else "freeze" if frozen else "full",
        _flag(draft, "llm"),
    )
    for part in ("tower", "connector"):
        draft.set(f"stage.tune.{part}", "freeze" if draft.boolean(_flag(draft, part)) else "full", _flag(draft, part))
    names = (
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        _flag(draft, "targets"),
        _flag(draft, "bits"),
        "additional_target",
    )
    if draft.kind == "instruct":
        for name in names:
            draft.settle(name, "no effect", "no adapters are trained")
        return
    rank = draft.number_of("lora_rank", int)
    draft.set("stage.lora.r", rank, "lora_rank")
    alpha = draft.number_of("lora_alpha") if draft.text("lora_alpha") else float(2 * (rank or 8))
    draft.set("stage.lora.alpha", alpha, "lora_alpha")
    draft.set("stage.lora.dropout", draft.number_of("lora_dropout"), "lora_dropout")
    targets = draft.text(_flag(draft, "targets")) or "all"
    every = targets in ("all", "all-linear")
    draft.set("stage.lora.targets", "all-linear" if every else targets.split(","), _flag(draft, "targets"))
    saved = draft.text("additional_target") if "additional_target" in draft.given else None
    draft.set("stage.lora.modules_to_save", saved.split(",") if saved else [], "additional_target")
    draft.set("stage.lora.bias", "none", note="none there")
    if draft.kind == "qlora":
        draft.set("stage.quant", {"bits": draft.number_of(_flag(draft, "bits"), int), "type": "nf4", "double": True},
                  _flag(draft, "bits"))  # fmt: skip


def _data(draft: Draft) -> None:
    names = draft.text("dataset")
    draft.settle("dataset", "differs", f"{names}: data entries name files; give data.NAME.annotations and images")
    draft.settle("dataset_dir", "no effect", "data entries name their own paths")
    draft.settle("media_dir", "no effect", "data entries name their own paths")
