"""The model that a log is to improve: where it lies, how large it is, how many positions it has."""

import re
from pathlib import Path
from typing import NamedTuple

from stages.base_model import BaseModelParams, run

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BaseModel(NamedTuple):
    """A model that exists and can be a base model."""

    folder: Path | None
    """Where it lies, as named by the user; None for one of the hub."""
    repository: str | None
    revision: str | None
    num_parameters: int
    num_bytes: int
    """Of its weights."""
    positions: int | None
    """Most tokens of a prompt and its answer; None if its configuration doesn't say."""

    def title(self) -> str:
        """What it is, in words."""
        name = str(self.folder) if self.folder else f"{self.repository}@{(self.revision or '')[:12]}"
        positions = f"{self.positions:,} positions" if self.positions else "a number of positions that it doesn't say"
        return f"{name}: {self.num_parameters:,} parameters, {positions}"


def look_at(name: str, artifact: Path) -> BaseModel:
    """Find a model, and write the artifact `base_model` by which the stages read it.

    Args:
        name: folder, or owner/name of a repository, with @COMMIT, @BRANCH or without.
        artifact: `base_model` artifact to write.

    Raises:
        ValueError: there is none, or it can't be a base model.
    """
    folder = Path(name)
    found = None if folder.is_dir() else _REPOSITORY.fullmatch(name)
    if found is None and not folder.is_dir():
        raise ValueError(
            f"--model: expected the folder of a model, or owner/name of a repository of the hub, found {name!r}"
        )
    if found is None:
        params, repository, revision = BaseModelParams(source="local"), None, None
    else:
        repository = found["repository"]
        revision = _commit(repository, found["revision"])
        params = BaseModelParams(source="hub", repository=repository, revision=revision)
    run(source=folder if found is None else None, base_model=artifact, params=params)
    from stages.models.pointer import num_positions, weights_folder

    weights = weights_folder(artifact)
    return BaseModel(
        None if found else folder,
        repository,
        revision,
        _num_parameters(weights),
        sum(file.stat().st_size for file in weights.glob("*.safetensors")),
        num_positions(artifact),
    )


def _commit(repository: str, revision: str | None) -> str:
    """The commit that a repository's branch stands at now."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    # The package looks for credentials and caches when it is imported; a local model needs neither.
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        return str(HfApi().model_info(repository, revision=revision).sha)
    except (HFValidationError, httpx.HTTPError, OSError) as error:
        raise ValueError(
            f"--model: {repository} is no folder here, and the hub says nothing of such a repository "
            f"({' '.join(str(error).split())}); check the name, your access and the network, or name a commit that "
            f"this machine has: {repository}@COMMIT"
        ) from None


def _num_parameters(folder: Path) -> int:
    from math import prod

    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            names: list[str] = list(tensors.keys())
            total += sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    return total
