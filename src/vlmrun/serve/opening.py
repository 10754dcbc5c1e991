"""Loads the models that are served; those with the same LLM and tower share them."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vlmrun import artifact, store
from vlmrun.data.images.seeing import view_of
from vlmrun.formats.base import How
from vlmrun.formats.convert import convert
from vlmrun.formats.load import describe, fill_connector, load
from vlmrun.model.parts import Loaded
from vlmrun.model.tune import wrap
from vlmrun.model.vlm import VLM
from vlmrun.serve.messages import Plan
from vlmrun.serve.served import Served
from vlmrun.weights.adapter import Adapter
from vlmrun.weights.native import weights_folder
from vlmrun.weights.reader import DTYPES


def open_model(folder: Path, *, dtype: str = "auto", attention: str = "sdpa", bits: int | None = None) -> Loaded:
    """Loads a model as it was saved, on the current GPU if there is one.

    Args:
        dtype: `auto` is bf16 on a GPU and fp32 on a CPU.
        bits: 4 or 8 quantizes the LLM's linear layers; None: as they were saved.
    """
    on_gpu = torch.cuda.is_available()
    chosen = (torch.bfloat16 if on_gpu else torch.float32) if dtype == "auto" else DTYPES[dtype]
    # As QLoRA holds them by default; `type` and `double` are of 4 bits only.
    quantized = None if bits is None else {"bits": bits, "type": "nf4", "double": True, "head": False}
    with _loadable(folder) as place:
        loaded = load(place, dtype=chosen, attention=attention, quantized=quantized)
    if on_gpu:
        loaded.vlm.to("cuda")
    return loaded


@contextlib.contextmanager
def _loadable(folder: Path) -> Iterator[Path]:
    """The folder, or, of a training checkpoint, a whole model put together from it for the time being."""
    if store.came_as(folder) is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="vlmrun-checkpoint-") as place:
        whole = Path(place) / "weights"
        convert(folder, whole, "native", How(), came_as="training")
        yield whole


@dataclass
class _Shared:
    """A loaded LLM and tower, and the adapters that lie in the LLM.

    Args:
        peft: PEFT's wrapper; None while no model has an adapter.
    """

    first: Loaded
    connector: dict[str, Any]
    peft: Any = None
    adapters: set[str] = field(default_factory=set)
    active: str | None = None

    def use(self, name: str | None) -> None:
        """Puts an adapter in place, or none."""
        if self.peft is None or self.active == name:
            return
        if name is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            if self.active is None:
                self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(name)
        self.active = name


def open_models(plan: Plan) -> dict[str, Served]:
    """All models of a plan, by name.

    Raises:
        CheckpointError: when one cannot be loaded.
    """
    found: dict[str, Served] = {}
    bases: dict[Any, _Shared] = {}
    for name, place in plan.models:
        folder = Path(place)
        description = describe(folder, store.came_as(folder))
        same = _base(folder, description)
        if same is not None and same in bases:
            loaded, adapter = _beside(bases[same], folder, description, name)
        else:
            loaded = open_model(folder, dtype=plan.dtype, attention=plan.attention, bits=plan.bits)
            shared = _Shared(loaded, description["model"]["connector"])
            adapter = None
            if hasattr(loaded.vlm.llm, "peft_config"):
                shared.peft, adapter = loaded.vlm.llm, "default"
                shared.active = adapter
            if same is not None:
                bases[same] = shared
        view = view_of(description.get("image_background"))
        found[name] = Served(name, loaded, description["image_aspect"], _use(bases.get(same), adapter), view=view)
    return found


def _use(shared: _Shared | None, adapter: str | None) -> Callable[[], None]:
    return lambda: None if shared is None else shared.use(adapter)


def _base(folder: Path, description: dict[str, Any]) -> Any:
    """What two models must have in common to share LLM and tower; None for one that shares with none."""
    known = artifact.read(folder) if (folder / artifact.NAME).is_file() else None
    if known is None or not description.get("model"):
        return None
    if description.get("adapter") and not _is_lora(Adapter(weights_folder(folder) / "adapter")):
        return None
    parts = ("weights/llm/", "weights/tower/")
    files = sorted((path, file.sha256) for path, file in known.files.items() if path.startswith(parts))
    model = {key: value for key, value in description["model"].items() if key not in ("template", "max_length")}
    return repr((files, sorted(model.items(), key=repr), description.get("quantized")))


def _is_lora(adapter: Adapter) -> bool:
    """Whether it is LoRA and nothing else: it changes no weight of the LLM itself."""
    return (
        bool(adapter.plain)
        and adapter.config.get("bias", "none") == "none"
        and not adapter.config.get("modules_to_save")
    )


def _beside(shared: _Shared, folder: Path, description: dict[str, Any], name: str) -> tuple[Loaded, str | None]:
    """A model on an LLM and a tower that are there already, and its adapter's name in the LLM."""
    first = shared.first
    weights = weights_folder(folder)
    connector = copy.deepcopy(first.vlm.connector)
    fill_connector(connector, weights / "connector")
    adapter = None
    if description.get("adapter"):
        adapter = name if shared.peft is not None else "default"
        _add(shared, Adapter(weights / "adapter"), adapter)
    vlm = VLM(first.vlm.llm, first.vlm.tower, connector, first.model.tiles).eval()
    model = first.model.model_copy(
        update={key: description["model"][key] for key in ("template", "max_length") if key in description["model"]}
    )
    return replace(first, vlm=vlm, model=model, template=description.get("template")), adapter


def _add(shared: _Shared, adapter: Adapter, name: str) -> None:
    from peft import LoraConfig, set_peft_model_state_dict

    llm = shared.first.vlm.llm
    if shared.peft is None:
        shared.peft = wrap(llm, adapter.config).eval().requires_grad_(False)
        shared.active = "default"
    else:
        kept = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "task_type")
        config = LoraConfig(**{key: adapter.config[key] for key in kept if key in adapter.config})
        shared.peft.add_adapter(name, config)
        shared.active = ""  # PEFT may have switched: `use` sets it again
    dtype, device = first_type(llm), next(llm.parameters()).device
    state = {key: value.to(device, dtype) for key, value in adapter.state().items()}
    set_peft_model_state_dict(shared.peft, state, adapter_name=name)
    for key, parameter in shared.peft.named_parameters():
        if "lora_" in key:
            parameter.data = parameter.data.to(device, dtype)
            parameter.requires_grad_(False)
    shared.peft.eval()


def first_type(llm: torch.nn.Module) -> torch.dtype:
    """The type of the weights that are not quantized."""
    return next(parameter.dtype for parameter in llm.parameters() if parameter.is_floating_point())
