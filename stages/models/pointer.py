"""Which model is meant: pointers, fingerprints, and the folder in which a model's files lie.

The artifact `base_model` is a folder with a `reference.json`: where the model stands and what its weights and its
tokenizer hash to. Only a model that the pipeline itself made lies in the folder; a large one is never copied.
"""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stages.contracts.files import file_digest, tree_stamp, write_json

POINTER_FILE = "reference.json"
LINEAGE_FILE = "plumbline.json"
ADAPTER_FILE = "adapter_config.json"

MODEL_FILES = ("config.json", ADAPTER_FILE, "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
)
CODE_FILES = ("*.py",)
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")

DType = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
Quantisation = Literal["8bit", "4bit"]


class Precision(NamedTuple):
    """How a model computes; the lineage of a policy says it, and its evaluation computes so too."""

    dtype: DType = "float32"
    """Type of the weights."""
    bf16: bool = False
    """Whether passes compute in bfloat16, whatever the type of the weights."""
    attention: Attention | None = None
    """How attention is computed, by its name in transformers; None leaves that to transformers."""
    quantisation: Quantisation | None = None
    """Bits that the weights are held in, by bitsandbytes; None for those of `dtype`."""


class ModelPointer(BaseModel):
    """What `reference.json` of the artifact `base_model` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["model_reference"] = "model_reference"
    version: Literal[1] = 1
    source: Literal["scratch", "local", "hub"]
    """`scratch`: the weights lie beside this file. `local`: in the folder `path`. `hub`: in `repository`."""
    path: str | None = None
    """Folder of a local model as params.yaml has it: absolute, or relative to the project's root."""
    repository: str | None = None
    """Name of a Hugging Face repository."""
    revision: str | None = None
    """Commit of that repository."""
    fingerprint: str
    """Hash of weights and configuration, as `fingerprint` computes it."""
    tokenizer_fingerprint: str
    """Hash of the tokenizer's files, as `tokenizer_fingerprint` computes it."""
    trust_remote_code: bool = False
    """Whether code that the model brings may run."""
    dtype: DType = "float32"
    """Type in which the weights are loaded."""
    attention: Attention | None = None
    """As of `Precision`."""
    quantisation: Quantisation | None = None
    """As of `Precision`."""
    pad_token: str
    """Token that fills short rows."""
    pad_token_is_eos: bool
    """Whether the tokenizer has no pad token of its own, so that its end of sequence stands in."""

    @model_validator(mode="after")
    def _names_its_model(self) -> Self:
        needed = {"scratch": (), "local": ("path",), "hub": ("repository", "revision")}[self.source]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a pointer of source {self.source} needs {' and '.join(missing)}")
        return self


def read_pointer(folder: Path) -> ModelPointer:
    """The pointer that stands in an artifact `base_model`.

    Raises:
        ValueError: there is none, or it isn't one that this version writes.
    """
    file = folder / POINTER_FILE
    try:
        return ModelPointer.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if (folder / ADAPTER_FILE).is_file():
            raise ValueError(
                f"{folder}: expected {POINTER_FILE}, by which other methods can start from a model, found an adapter "
                "without one; train it with merge_lora: true"
            ) from None
        raise ValueError(f"{folder}: expected {POINTER_FILE}, found none; run `dvc repro base_model`") from None
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ValueError(
            f"{file}: expected a pointer to a model, found: {problem}; run `dvc repro base_model`"
        ) from None


def write_pointer(folder: Path, pointer: ModelPointer) -> None:
    """Write `pointer` into the artifact `folder`, which exists."""
    write_json(folder / POINTER_FILE, pointer.model_dump())


def write_lineage(model: Path, base_model: Path, **facts: Any) -> None:
    """Write into the folder of a trained model which base it came from; an adapter is loaded onto that.

    Loading holds the weights against the hash that is written here.

    Args:
        model: folder of the trained model, whose weights and configuration are written.
        base_model: artifact `base_model` or folder of the model that it started from.
        facts: finite JSON values to keep beside it (method, settings).
    """
    # The stage runtime renames the folder to its final name beside where it is written, which keeps this path true.
    path = Path(os.path.relpath(base_model.resolve(), model.resolve())).as_posix()
    lineage = {"path": path, "fingerprint": fingerprint(base_model)}
    weights = _model_digest(model, trust_remote_code=False)
    write_json(model / LINEAGE_FILE, {**facts, "weights": weights, "base_model": lineage})


def precision_of(folder: Path) -> Precision:
    """How a model computes: as it was trained, else as its pointer says, else in float32."""
    facts = _lineage(folder)
    if "precision" in facts:
        return Precision(**facts["precision"])
    if (folder / ADAPTER_FILE).is_file():
        return precision_of(adapter_base(folder))
    if not (folder / POINTER_FILE).is_file():
        return Precision()
    pointer = read_pointer(folder)
    return Precision(pointer.dtype, attention=pointer.attention, quantisation=pointer.quantisation)


def _lineage(folder: Path) -> dict[str, Any]:
    """What `write_lineage` wrote; nothing for another model."""
    file = folder / LINEAGE_FILE
    if not file.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(
            f"{file}: expected the JSON of a training, found none; `dvc checkout` or train again"
        ) from None
    return found


def fingerprint(folder: Path, *, trust_remote_code: bool = False) -> str:
    """Hash of the weights and the configuration of a model; of an adapter, also of what it is laid on.

    For an artifact `base_model` it is what the pointer says, which loading holds the files against.

    Args:
        folder: artifact `base_model` or folder of a model.
        trust_remote_code: whether code that the model brings would run, and so counts; a pointer knows itself.
    """
    if (folder / POINTER_FILE).is_file():
        return read_pointer(folder).fingerprint
    parts = [_model_digest(folder, trust_remote_code=trust_remote_code)]
    if (folder / ADAPTER_FILE).is_file():
        parts.append(fingerprint(adapter_base(folder)))
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """Hash of the tokenizer's files, chat template included; of an artifact `base_model`, what its pointer says."""
    if (folder / POINTER_FILE).is_file():
        return read_pointer(folder).tokenizer_fingerprint
    return _files_digest(folder, TOKENIZER_FILES)


def weights_folder(folder: Path) -> Path:
    """The folder in which a model's files lie, checked against the pointer if `folder` holds one.

    A model of a repository is downloaded unless the machine has it.

    Raises:
        ValueError: the model is missing, has no safetensors, or isn't the one that the pointer names or that its
            training wrote.
    """
    if not (folder / POINTER_FILE).is_file():
        _check_safetensors(folder)
        written = _lineage(folder).get("weights")
        if written is not None and written != _model_digest(folder, trust_remote_code=False):
            raise ValueError(
                f"{folder}: expected the weights that its training wrote, as {LINEAGE_FILE} has them, found others; "
                "the folder is damaged or was changed: `dvc checkout` or train again"
            )
        return folder
    pointer = read_pointer(folder)
    if pointer.source == "hub":
        return _hub_folder(pointer)
    found = folder if pointer.path is None else Path(pointer.path)
    _check_safetensors(found)
    if not _is_pointed_at(found, pointer):
        raise ValueError(
            f"{found}: expected the model that {folder / POINTER_FILE} names, found other weights or another "
            "tokenizer; run `dvc repro base_model`"
        )
    return found


def num_positions(folder: Path) -> int | None:
    """Positions that a model has, as its configuration says; None if it doesn't."""
    found = weights_folder(folder)
    if (found / ADAPTER_FILE).is_file():
        return num_positions(adapter_base(found))
    config = json.loads((found / "config.json").read_text(encoding="utf-8"))
    known = [part.get(name) for part in (config, config.get("text_config") or {}) for name in _POSITIONS]
    return next((number for number in known if isinstance(number, int) and number > 0), None)


def adapter_base(folder: Path) -> Path:
    """The base that an adapter was trained on.

    Raises:
        ValueError: the adapter doesn't say, or its base is another model now.
    """
    try:
        lineage = json.loads((folder / LINEAGE_FILE).read_text(encoding="utf-8"))["base_model"]
        base, expected = folder.resolve() / lineage["path"], lineage["fingerprint"]
    except (FileNotFoundError, KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(
            f"{folder}: expected an adapter with a {LINEAGE_FILE} that names its base model, found none; "
            "train it with this pipeline, or merge it into its base first"
        ) from None
    base = Path(os.path.normpath(base))
    if fingerprint(base) != expected:
        raise ValueError(f"{folder}: the adapter was trained on another model than {base} holds; train it again")
    return base


def trusts_code(folder: Path) -> bool:
    """Whether a pointer in `folder` lets the model's own code run."""
    return (folder / POINTER_FILE).is_file() and read_pointer(folder).trust_remote_code


def _check_safetensors(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with a model, found none; check the path in params.yaml")
    if any(folder.glob("*.safetensors")):
        return
    others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in folder.glob(pattern))
    raise ValueError(
        f"{folder}: expected weights as *.safetensors, found {', '.join(others) or 'no weights'}; `python -m "
        f"pipelines convert {folder}` writes those of a *.bin beside it, reading tensors alone; others are converted "
        "where they came from"
    )


def _is_pointed_at(folder: Path, pointer: ModelPointer) -> bool:
    return (
        _model_digest(folder, trust_remote_code=pointer.trust_remote_code) == pointer.fingerprint
        and _files_digest(folder, TOKENIZER_FILES) == pointer.tokenizer_fingerprint
    )


def _hub_folder(pointer: ModelPointer) -> Path:
    """The repository's snapshot on this machine, from the cache or downloaded."""
    repository, revision = cast(str, pointer.repository), cast(str, pointer.revision)
    for is_local in (True, False):
        try:
            folder = download_snapshot(
                repository, revision, trust_remote_code=pointer.trust_remote_code, local_files_only=is_local
            )
        except ValueError:
            if is_local:
                continue
            raise
        # A snapshot in the cache may be half of one.
        if any(folder.glob("*.safetensors")) and _is_pointed_at(folder, pointer):
            return folder
    raise ValueError(
        f"{repository}@{revision}: expected the model that {POINTER_FILE} names, found other files; "
        "run `dvc repro base_model`"
    )


def download_snapshot(
    repository: str, revision: str, *, trust_remote_code: bool = False, local_files_only: bool = False
) -> Path:
    """The folder of a repository's safetensors, configuration and tokenizer at one commit; no other file is fetched.

    Args:
        repository: name of a Hugging Face repository.
        revision: commit, 40 hexadecimal digits.
        trust_remote_code: whether to fetch the repository's code too.
        local_files_only: whether to look in this machine's cache alone.

    Raises:
        ValueError: the repository or the commit can't be had.
    """
    # The package looks for credentials and caches when it is imported; a local model needs neither.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["generation_config.json", *MODEL_FILES, *TOKENIZER_FILES, *(CODE_FILES if trust_remote_code else ())]
    # A pattern's star also stands for folders there; the weights of other formats lie in folders of their own.
    patterns = [pattern for pattern in patterns if pattern != ADAPTER_FILE]
    try:
        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            local_files_only=local_files_only,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{repository}@{revision}: the model can't be downloaded ({one_line(error)}); check the "
            "names in params.yaml, your access to it and the network"
        ) from None
    return Path(found)


def _model_digest(folder: Path, *, trust_remote_code: bool) -> str:
    # Code that doesn't run may lie in a shared cache or not, so the hash leaves it out.
    return _files_digest(folder, (*MODEL_FILES, *(CODE_FILES if trust_remote_code else ())))


def _files_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return _digest_of(tuple((file, tree_stamp(file)) for file in files))


@functools.lru_cache(maxsize=64)
def _digest_of(stamped: tuple[tuple[Path, Any], ...]) -> str:
    """Hash of names and bytes, computed once a process as long as the files' stamps stay."""
    digest = hashlib.sha256()
    for file, _ in stamped:
        digest.update(f"{file.name}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """The text of an error whose message may have several lines."""
    return " ".join(str(error).split())
