"""Stage `prompt_embedding`: a vector for each distinct prompt, from which `density_ratio` learns how prompts differ.

    dvc repro prompt_embedding

The encoder `base` embeds the prompt as the model reads it, chat template included: the mean of the base model's last
hidden states over the prompt's tokens; it needs no download. Any other encoder was made for plain text and gets the
texts of the user's and the assistant's turns, without control tokens and system prompt.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from stages.contracts.artifact import read_table, write_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.prompt_embeddings import PROMPT_EMBEDDINGS
from stages.contracts.row_cache import cached_rows, code_fingerprint
from stages.contracts.rows import content_id
from stages.contracts.stage import Input, Memo, Output, Section, stage_main


class PromptEmbeddingParams(Section):
    """Section `prompt_embedding` of params.yaml."""

    encoder: str = "base"
    """`base`, the folder of an encoder, or a Hugging Face repository."""
    revision: str | None = None
    """Commit of the repository; needed for one, and unused otherwise."""
    kind: Literal["auto", "sentence_transformers", "transformers"] = "auto"
    """How to run an encoder other than `base`: all modules of a sentence-transformers model, or the masked mean of a
    plain encoder's hidden states. `auto` looks for `modules.json`."""
    prefix: str = ""
    """Put before each text, for encoders that were trained with one, such as "clustering: "."""
    max_length: int | None = Field(None, gt=0)
    """Tokens read of a prompt at most; null reads what the encoder can."""
    keep: Literal["end", "both_ends", "start", "chunks"] = "end"
    """What is read of a prompt that is longer: its end, where a question tends to stand behind what it is asked about,
    its start, as much of both, or all of it in chunks, of whose embeddings the mean is taken."""
    batch_size: int = Field(32, gt=0)
    """Prompts of a forward pass; bounds memory and can change a value's last bits."""
    trust_remote_code: bool = False
    """Whether code that an encoder brings may run."""


def run(
    *, completions: Input, base_model: Input, prompt_embeddings: Output, memo: Memo, params: PromptEmbeddingParams
) -> None:
    """Embed each distinct prompt once, in the order in which prompts first appear.

    Args:
        completions: `completions` artifact; prompts of all its rows count, also those without completion.
        base_model: the model that embeds for the encoder `base`.
        prompt_embeddings: `prompt_embeddings` artifact to write.
        memo: folder of results per prompt.
        params: encoder and batch shape.

    Raises:
        ContractError: `completions` is missing or damaged.
        ValueError: the encoder is missing, not pinned, or of another kind.
    """
    from stages.models.devices import default_device
    from stages.models.pointer import fingerprint, tokenizer_fingerprint
    from stages.udm.embedding import TextEmbedder, conversation_text, encoder_fingerprint, encoder_folder

    rows = read_table(completions, COMPLETIONS, columns=["prompt_id", "prompt", "messages"])
    _, first = np.unique(rows["prompt_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    prompts = rows.take(pa.array(np.sort(first)))
    is_base = params.encoder == "base"
    folder = base_model if is_base else encoder_folder(params.encoder, revision=params.revision)
    texts = prompts["prompt"].to_pylist() if is_base else map(conversation_text, prompts["messages"].to_pylist())
    table = pa.table({"text": pa.array([params.prefix + text for text in texts], pa.string())})
    model_id = [fingerprint(folder), tokenizer_fingerprint(folder)] if is_base else [encoder_fingerprint(folder)]
    embedder = TextEmbedder(
        folder,
        is_base=is_base,
        kind=params.kind,
        max_length=params.max_length,
        keep=params.keep,
        batch_size=params.batch_size,
        trust_remote_code=params.trust_remote_code,
    )
    results = cached_rows(
        table,
        embedder,
        memo=memo,
        fingerprint=content_id(
            code_fingerprint("stages.udm.embedding"), model_id, params.model_dump(), default_device().type
        ),
        key_columns=["text"],
        costs=[len(text) for text in table["text"].to_pylist()],
        flush_rows=16 * params.batch_size,
        progress="prompt_embedding",
    )
    num_cut = pc.sum(results["is_cut"]).as_py() or 0
    if num_cut:
        print(
            f"prompt_embedding: {num_cut:,} of {len(prompts):,} prompts ({num_cut / len(prompts):.1%}) are longer than "
            f"the encoder reads; of them it reads {params.keep.replace('_', ' ')} (prompt_embedding.keep)"
        )
    write_table(
        prompt_embeddings,
        results.drop_columns(["is_cut"]).add_column(0, "prompt_id", prompts["prompt_id"]),
        PROMPT_EMBEDDINGS,
        meta={"prompts_cut": num_cut} if num_cut else None,
    )


if __name__ == "__main__":
    stage_main(run)
