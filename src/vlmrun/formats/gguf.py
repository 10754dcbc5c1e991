"""Language models of llama.cpp, read and dequantized one tensor at a time.

Which names, which configuration and which rows are turned round is transformers' knowledge, for the architectures it
supports. A GGUF file of a vision part ("mmproj") is not read.

Source: transformers 5.23 modeling_gguf_pytorch_utils.py
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmrun.errors import CheckpointError, Problem
from vlmrun.formats.base import LLM_CONFIG, How, Model
from vlmrun.model import pretrained
from vlmrun.weights.lazy import Lazy, whole

_MAGIC = b"GGUF"


def detect(folder: Path) -> bool:
    """Whether the file, or one in the folder, begins as they do."""
    return _file(folder) is not None


def _file(place: Path) -> Path | None:
    candidates = [place] if place.is_file() else sorted(place.glob("*.gguf"))
    found = [path for path in candidates if _begins(path)]
    return found[0] if len(found) == 1 else None


def _begins(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read(folder: Path, how: How) -> Model:
    """The LLM in fp32, or in the type that is asked for, and its tokenizer.

    Raises:
        CheckpointError: when the gguf package is missing or the architecture is not supported.
    """
    path = _file(folder)
    assert path is not None
    values = _config(path)
    model = Model({}, {"model": None}, {LLM_CONFIG: values})
    model.tensors = {f"llm.{name}": value for name, value in _tensors(path, values).items()}
    model.json |= _tokenizer(path)
    return model


def refuse(model: Model, how: How) -> list[Problem]:
    """It is read only."""
    return [Problem("gguf is not written", "", "llama.cpp's convert_hf_to_gguf.py makes it from --to hf")]


def _config(path: Path) -> dict[str, Any]:
    try:
        from transformers import AutoConfig

        with pretrained.quietly():
            found = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    except ImportError as error:
        raise CheckpointError("reading gguf needs the gguf package", str(path), "pip install 'gguf>=0.19'") from error
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"this gguf file cannot be read: {str(error).splitlines()[0]}", str(path), "fetch it again"
        ) from error
    values: dict[str, Any] = json.loads(found.to_json_string())
    return values | {"dtype": "float32"}


def _tensors(path: Path, values: dict[str, Any]) -> dict[str, Lazy]:
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import modeling_gguf_pytorch_utils as theirs

    with torch.device("meta"):
        given = {key: value for key, value in values.items() if key != "model_type"}
        config = AutoConfig.for_model(values["model_type"], **given)
        llm = pretrained.create(AutoModelForCausalLM, config, dtype=torch.float32, attention="eager")
    reader = GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        raise CheckpointError("general.architecture is missing", str(path), "download or convert the file again")
    kind: Any = theirs.TENSOR_PROCESSORS.get(str(architecture.contents()), theirs.TensorProcessor)
    processor = kind(config=values)
    names = theirs.get_gguf_hf_weights_map(llm, processor)
    unknown = [tensor.name for tensor in reader.tensors if tensor.name not in names and not _constant(tensor.name)]
    if unknown:
        raise CheckpointError([Problem(f"unknown tensor {name}", str(path)) for name in unknown[:20]])
    shapes = {name: tuple(value.shape) for name, value in llm.state_dict().items()}
    found = {}
    for tensor in reader.tensors:
        if tensor.name in names:
            name = names[tensor.name]
            found[name] = whole(shapes[name], torch.float32, partial(_load, tensor, processor, names, values))
    return found


def _constant(name: str) -> bool:
    """Values that the configuration gives as well."""
    return name == "rope_freqs.weight"


def _load(tensor: Any, processor: Any, names: dict[str, str], values: dict[str, Any]) -> torch.Tensor:
    from gguf import dequantize

    weights = dequantize(tensor.data, tensor.tensor_type)
    turned = processor.process(
        weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters={"config": values}
    )
    return torch.from_numpy(np.array(turned.weights, dtype=np.float32))


def _tokenizer(path: Path) -> dict[str, dict[str, Any]]:
    """Its files as values."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, pretrained.quietly():
        found = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
        found.save_pretrained(folder)
        names = ("tokenizer.json", "tokenizer_config.json")
        return {f"llm/{name}": json.loads((Path(folder) / name).read_text("utf-8")) for name in names}
