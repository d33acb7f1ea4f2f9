"""Weights that stand in a pickle, written as safetensors beside it: tensors are read alone, and no code is run."""

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.contracts.files import write_json, written_beside
from stages.models.value_head import HEAD_PREFIX, VALUE_HEAD_FILE

_INDEX = ".index.json"
_SAFE_NAMES = {"pytorch_model": "model", "adapter_model": "adapter_model"}


def convert(folder: Path) -> list[Path]:
    """Write the weights of a model or an adapter as safetensors; the pickles stay.

    A pickle that holds a value head and nothing else, as TRL's PPO leaves it beside an adapter, becomes the file that
    this project keeps a value head in.

    Args:
        folder: folder with `pytorch_model.bin`, its shards and their index, or `adapter_model.bin`.

    Returns:
        The files written.

    Raises:
        ValueError: there is no such pickle, a file to write is there already, or a pickle holds more than tensors.
    """
    pickles = sorted(
        file for file in folder.glob("*.bin") if file.name.partition("-")[0].partition(".")[0] in _SAFE_NAMES
    )
    if not pickles:
        raise ValueError(
            f"{folder}: expected pytorch_model.bin, its shards or adapter_model.bin, found none; give a model's folder"
        )
    indices = {file: folder / _safe_name(file.name) for file in folder.glob(f"pytorch_model.bin{_INDEX}")}
    for target in (*(folder / _safe_name(file.name) for file in pickles), folder / VALUE_HEAD_FILE, *indices.values()):
        if target.exists():
            raise ValueError(f"{target}: expected no such file yet, found one; move it away to convert anew")
    written = []
    for file in pickles:
        tensors = _tensors(file)
        is_head = bool(tensors) and all(name.startswith(HEAD_PREFIX) for name in tensors)
        written.append(folder / (VALUE_HEAD_FILE if is_head else _safe_name(file.name)))
        # A tensor under two names, such as tied embeddings, is written under each.
        plain = {
            name.removeprefix(HEAD_PREFIX) if is_head else name: weight.clone() for name, weight in tensors.items()
        }
        with written_beside(written[-1]) as path:
            save_file({name: weight.contiguous() for name, weight in plain.items()}, path, {"format": "pt"})
    for file, target in indices.items():
        index = json.loads(file.read_text(encoding="utf-8"))
        index["weight_map"] = {name: _safe_name(shard) for name, shard in index["weight_map"].items()}
        write_json(target, index)
    return [*written, *indices.values()]


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{file}: expected a pickle of tensors alone, found: {error!s:.200}") from None
    if not isinstance(found, dict) or not all(isinstance(weight, Tensor) for weight in found.values()):
        raise ValueError(f"{file}: expected tensors by name, found {type(found).__name__} with something else")
    return found


def _safe_name(name: str) -> str:
    """The name that transformers and peft look for, of a pickle's or its index's."""
    before, after = next(pair for pair in _SAFE_NAMES.items() if name.startswith(pair[0]))
    return name.replace(before, after, 1).replace(".bin", ".safetensors", 1)
