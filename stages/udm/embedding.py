"""Embeddings of prompts by a frozen encoder, each a function of its own text and the encoder alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from stages.contracts.files import file_digest, files_below
from stages.contracts.rows import content_id
from stages.models.devices import default_device, place
from stages.models.loading import load_causal_lm
from stages.models.pointer import one_line
from stages.models.tokenizers import load_tokenizer
from stages.rows.batching import fixed_batches, padded

EncoderKind = Literal["auto", "sentence_transformers", "transformers"]
Kept = Literal["end", "both_ends", "start", "chunks"]
"""What is read of a text that is longer than the encoder can read."""
# What an encoder is made of; weights in other formats are never read.
_ENCODER_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.py")
# An encoder whose config and tokenizer name no limit.
_DEFAULT_MAX_LENGTH = 512


class Cut(NamedTuple):
    """What an encoder reads of a text."""

    ids: list[int]
    is_cut: bool
    """Whether the text is longer."""
    further: tuple[list[int], ...] = ()
    """The rest of it in further pieces, where all are read and the mean of their embeddings is taken."""


def cut_to(ids: list[int], bare: Sequence[int], limit: int, keep: Kept) -> Cut:
    """The ids of a text, or those that an encoder has room for.

    Args:
        ids: with the special tokens that stand around a text, which are kept.
        bare: without them.
        limit: most ids.
        keep: of a text that is longer, its end, its start, as much of both, or all of it in chunks.
    """
    if len(ids) <= limit:
        return Cut(ids, is_cut=False)
    number = len(ids) - len(bare)
    lead = next((place for place in range(number + 1) if ids[place : place + len(bare)] == list(bare)), 0)
    begin, end = ids[:lead], ids[lead + len(bare) :] if number else []
    room = max(limit - len(begin) - len(end), 0)
    if keep == "chunks":
        # Of about equal size, so that none is a few words that count like all the others.
        size = -(-len(bare) // -(-len(bare) // max(room, 1)))
        first_chunk, *others = [[*begin, *bare[place : place + size], *end] for place in range(0, len(bare), size)]
        return Cut(first_chunk, is_cut=True, further=tuple(others))
    first = {"end": 0, "both_ends": room // 2, "start": room}[keep]
    body = [*bare[:first], *bare[len(bare) - (room - first) :]]
    return Cut([*begin, *body, *end], is_cut=True)


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder of texts."""

    tokenize: Callable[[Sequence[str]], list["Cut"]]
    """Token ids of each text, as many as the encoder can read."""
    forward: Callable[[Tensor, Tensor], Tensor]
    """Embeddings (n, d) of token ids and their mask, both (n, t) and padded on the right."""
    pad_id: int
    """Id that fills short rows."""

    def embed(self, texts: Sequence[str], *, batch_size: int) -> NDArray[np.float32]:
        """Embeddings of the texts, of shape (n, d); see `embed_ids`."""
        return self.embed_ids([found.ids for found in self.tokenize(texts)], batch_size=batch_size)

    @torch.inference_mode()
    def embed_ids(self, sequences: Sequence[Sequence[int]], *, batch_size: int) -> NDArray[np.float32]:
        """Embeddings of the texts, in batches of fixed shape so that a text's neighbours change no bit of it.

        Args:
            sequences: token ids of what to embed.
            batch_size: texts of a forward pass.

        Returns:
            Shape (n, d).
        """
        parts: dict[int, NDArray[np.float32]] = {}
        for rows, filled, width in fixed_batches([len(sequence) for sequence in sequences], batch_size=batch_size):
            inputs = padded([sequences[row] for row in filled], pad_id=self.pad_id, width=width)
            embeddings = self.forward(inputs.ids, inputs.mask).float().cpu().numpy()
            parts.update(zip(rows, embeddings[: len(rows)], strict=True))
        return np.stack([parts[row] for row in range(len(sequences))])


def mean_pooled(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the hidden states of tokens that aren't padding; zeros for a row without tokens.

    Args:
        hidden: shape (n, t, d).
        attention_mask: 1 for tokens, 0 for padding. Shape (n, t).

    Returns:
        float32, shape (n, d).
    """
    mask = attention_mask[:, :, None].to(torch.float32)
    return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def base_encoder(base_model: Path, *, max_length: int | None, device: torch.device, keep: Kept = "end") -> Encoder:
    """The base model itself: mean of its last hidden states over a prompt's tokens.

    Args:
        base_model: artifact or folder of a causal language model.
        max_length: tokens read at most; None reads what the model can.
        keep: what is read of a longer prompt; its question tends to stand at the end.
        device: where to compute.
    """
    model = place(load_causal_lm(base_model, dtype="float32"), device)
    tokenizer = load_tokenizer(base_model)
    limit = _max_length(model.config, None, max_length)
    backbone = getattr(model, model.base_model_prefix)

    def tokenize(texts: Sequence[str]) -> list[Cut]:
        # The chat template has put special tokens where they belong.
        return [cut_to(ids, ids, limit, keep) for ids in _bare_ids(tokenizer, texts)]

    return Encoder(tokenize, _pooled_forward(backbone, device, use_cache=False), tokenizer.pad_token_id or 0)


def load_encoder(
    folder: Path,
    *,
    kind: EncoderKind = "auto",
    max_length: int | None = None,
    device: torch.device,
    keep: Kept = "end",
    trust_remote_code: bool = False,
) -> Encoder:
    """An encoder of texts from a folder.

    Args:
        folder: files of a sentence-transformers model or of a plain encoder with its tokenizer.
        kind: `sentence_transformers` runs all modules of such a model; `transformers` takes the masked mean of the
            last hidden states; `auto` tells the two apart by `modules.json`.
        max_length: tokens read at most; None reads what the encoder can.
        device: where to compute.
        keep: what is read of a longer text.
        trust_remote_code: whether code that the encoder brings may run.

    Raises:
        ValueError: the folder holds no encoder of that kind in safetensors.
    """
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*/*.safetensors")):
        raise ValueError(f"{folder}: expected an encoder with weights as *.safetensors, found none")
    has_modules = (folder / "modules.json").is_file()
    if kind == "sentence_transformers" and not has_modules:
        raise ValueError(
            f"{folder}: expected a sentence-transformers model, found no modules.json; set "
            "prompt_embedding.kind: transformers for a plain encoder"
        )
    try:
        if has_modules and kind != "transformers":
            return _sentence_encoder(folder, max_length, device, keep, trust_remote_code=trust_remote_code)
        return _plain_encoder(folder, max_length, device, keep, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{folder}: the encoder can't be loaded: {one_line(error)}") from None


def _bare_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _cut_texts(tokenizer: Any, texts: Sequence[str], limit: int, keep: Kept) -> list[Cut]:
    whole: list[list[int]] = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    return [cut_to(*ids, limit, keep) for ids in zip(whole, _bare_ids(tokenizer, texts), strict=True)]


def _plain_encoder(
    folder: Path, max_length: int | None, device: torch.device, keep: Kept, *, trust_remote_code: bool
) -> Encoder:
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    model = AutoModel.from_pretrained(str(folder), use_safetensors=True, dtype=torch.float32, **options)
    model.eval().to(device)
    limit = _max_length(model.config, tokenizer.model_max_length, max_length)

    def tokenize(texts: Sequence[str]) -> list[Cut]:
        return _cut_texts(tokenizer, texts, limit, keep)

    return Encoder(tokenize, _pooled_forward(model, device), tokenizer.pad_token_id or 0)


def _sentence_encoder(
    folder: Path, max_length: int | None, device: torch.device, keep: Kept, *, trust_remote_code: bool
) -> Encoder:
    # Imports half of the scientific stack; only this kind of encoder needs it.
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        device=str(device),
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    ).eval()
    if max_length is not None:
        model.max_seq_length = min(max_length, model.max_seq_length or max_length)

    limit = model.max_seq_length

    def tokenize(texts: Sequence[str]) -> list[Cut]:
        features = model.preprocess(list(texts))
        read = [
            ids[mask].tolist()
            for ids, mask in zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
        ]
        if limit is None:
            return [Cut(ids, is_cut=False) for ids in read]
        cuts = _cut_texts(model.tokenizer, texts, limit, keep)
        # The model's own preparation of a text has the last word wherever nothing is cut.
        return [cut if cut.is_cut else Cut(ids, is_cut=False) for cut, ids in zip(cuts, read, strict=True)]

    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device), "modality": "text"}
        embeddings: Tensor = model(features)["sentence_embedding"]
        return embeddings

    return Encoder(tokenize, forward, model.tokenizer.pad_token_id or 0)


def _pooled_forward(model: nn.Module, device: torch.device, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.to(device)
        return mean_pooled(
            model(input_ids=input_ids.to(device), attention_mask=mask, **options).last_hidden_state, mask
        )

    return forward


def _max_length(config: Any, tokenizer_limit: int | None, asked: int | None) -> int:
    known = [getattr(config, "max_position_embeddings", None), tokenizer_limit, asked]
    return int(min([limit for limit in known if limit], default=_DEFAULT_MAX_LENGTH))


def encoder_folder(encoder: str, *, revision: str | None) -> Path:
    """The folder of an encoder: a local one, or a repository's snapshot, downloaded unless the machine has it.

    Args:
        encoder: path of a folder, or name of a Hugging Face repository.
        revision: commit of the repository; a folder has none.

    Raises:
        ValueError: it is neither, or a repository without a pinned revision, or it can't be had.
    """
    folder = Path(encoder)
    if folder.is_dir():
        return folder
    if encoder.count("/") != 1 or encoder.startswith((".", "/", "~")):
        raise ValueError(
            f"prompt_embedding.encoder: expected `base`, a folder or a repository `owner/name`, found {encoder!r}"
        )
    if revision is None:
        raise ValueError(
            f"prompt_embedding.revision: expected the commit of {encoder}, found none; a name alone can come to mean "
            "other weights"
        )
    # A local encoder needs no hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(encoder, revision=revision, allow_patterns=list(_ENCODER_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{encoder}@{revision}: the encoder can't be downloaded ({one_line(error)}); check the names "
            "in params.yaml, your access to it and the network"
        ) from None


def encoder_fingerprint(folder: Path) -> str:
    """Hash of the names and bytes of an encoder's files."""
    files = [file for file in files_below(folder) if any(file.match(pattern) for pattern in _ENCODER_FILES)]
    return content_id([[file.relative_to(folder).as_posix(), file_digest(file)] for file in files])


def conversation_text(messages: str) -> str:
    """What a person would see of a prompt: the texts of its user and assistant turns, without control tokens.

    Args:
        messages: column `messages` of `completions`, JSON with the prompt as a text or a list of messages.

    Returns:
        The turns' texts, parted by blank lines; those of all roles where there is neither user nor assistant.
    """
    prompt = json.loads(messages)["prompt"]
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt if turn.get("role") in {"user", "assistant"}] or prompt
    return "\n\n".join(text for text in (_content_text(turn.get("content")) for turn in turns) if text)


def _content_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Text of a message's content, which may be a list of parts of which some are images."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))


@dataclass(frozen=True)
class TextEmbedder:
    """Gives the embeddings of rows of text, as column `embedding`, and whether a text was cut, as `is_cut`."""

    folder: Path
    """The encoder."""
    is_base: bool
    """Whether it is the base model."""
    kind: EncoderKind
    """How to run an encoder; see `load_encoder`."""
    max_length: int | None
    """Tokens read at most; None reads what the encoder can."""
    keep: Kept
    """What is read of a longer text."""
    batch_size: int
    """Texts of a forward pass."""
    trust_remote_code: bool
    """Whether code that the encoder brings may run."""

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded once a process and only if there is something to compute."""
        if self.is_base:
            return base_encoder(self.folder, max_length=self.max_length, device=default_device(), keep=self.keep)
        return load_encoder(
            self.folder,
            kind=self.kind,
            max_length=self.max_length,
            device=default_device(),
            keep=self.keep,
            trust_remote_code=self.trust_remote_code,
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Embeddings in the order of `rows`."""
        cuts = self.encoder.tokenize(rows["text"].to_pylist())
        pieces = [[cut.ids, *cut.further] for cut in cuts]
        vectors = self.encoder.embed_ids([ids for own in pieces for ids in own], batch_size=self.batch_size)
        if len(vectors) > len(cuts):
            ends = np.cumsum([len(own) for own in pieces])
            vectors = np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        return pa.table({"embedding": column, "is_cut": [cut.is_cut for cut in cuts]})
