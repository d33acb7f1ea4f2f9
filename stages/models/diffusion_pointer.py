"""Which diffusion pipeline is meant: the artifact `base_diffusion`, a pointer with a fingerprint.

A pipeline that the project itself made lies in the artifact's folder; a large one is never copied.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.contracts.files import file_digest, files_below, write_json
from stages.models.pointer import LINEAGE_FILE

POINTER_FILE = "diffusion_reference.json"
PIPELINE_FOLDER = "pipeline"

# What a pipeline is loaded from; checkpoints often hold the same weights in other formats and pictures besides.
_SUFFIXES = {".json", ".safetensors", ".txt"}


class DiffusionPointer(BaseModel):
    """What `diffusion_reference.json` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["diffusion_reference"] = "diffusion_reference"
    version: Literal[1] = 1
    path: str | None = None
    """Folder of the pipeline as params.yaml has it; None if it lies in the artifact."""
    fingerprint: str
    """Hash of its weights, configurations and vocabulary."""


def pipeline_fingerprint(folder: Path) -> str:
    """Hash of names and bytes of all that a pipeline is loaded from.

    Raises:
        ValueError: the folder holds no pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder}: expected the folder of a Stable Diffusion checkpoint, found no model_index.json in it; check "
            "inputs.base_diffusion in params.yaml"
        )
    digest = hashlib.sha256()
    for file in files_below(folder):
        if file.suffix in _SUFFIXES:
            digest.update(f"{file.relative_to(folder).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def write_diffusion_pointer(folder: Path, pipeline: Path) -> DiffusionPointer:
    """Write into the artifact `folder` which pipeline it stands for, and give that back."""
    path = None if pipeline == folder / PIPELINE_FOLDER else pipeline.as_posix()
    pointer = DiffusionPointer(path=path, fingerprint=pipeline_fingerprint(pipeline))
    write_json(folder / POINTER_FILE, pointer.model_dump())
    return pointer


def read_diffusion_pointer(folder: Path) -> DiffusionPointer:
    """The pointer that stands in an artifact `base_diffusion`.

    Raises:
        ValueError: there is none, or it isn't one that this version writes.
    """
    file = folder / POINTER_FILE
    try:
        return DiffusionPointer.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        raise ValueError(f"{file}: expected a pointer to a pipeline, found none; run base_diffusion again") from None


def write_diffusion_lineage(model: Path, base_diffusion: Path, **facts: Any) -> None:
    """Write into the folder of a trained model which pipeline it came from.

    Args:
        model: folder of the trained model.
        base_diffusion: artifact `base_diffusion` that training started from.
        facts: finite JSON values to keep beside it.
    """
    write_json(model / LINEAGE_FILE, {**facts, "base_diffusion": read_diffusion_pointer(base_diffusion).fingerprint})


def pipeline_folder(folder: Path) -> Path:
    """The folder of the pipeline that an artifact `base_diffusion` stands for.

    Raises:
        ValueError: it is missing, or another one by now.
    """
    pointer = read_diffusion_pointer(folder)
    found = folder / PIPELINE_FOLDER if pointer.path is None else Path(pointer.path)
    if pipeline_fingerprint(found) != pointer.fingerprint:
        raise ValueError(f"{found}: expected the pipeline that {folder} names, found another; run base_diffusion again")
    return found
