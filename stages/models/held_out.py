"""What evaluation reads of the artifacts: held-out prompts, their slices, and the labelled rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.contracts.rows import content_id
from stages.models.pointer import LINEAGE_FILE
from stages.rows.scored import scored_tokens


def read_reward(model: Path) -> tuple[float, float]:
    """Beta and the reward shift that training left in the model's folder.

    Raises:
        ValueError: the folder doesn't say.
    """
    file = model / LINEAGE_FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return float(facts["beta"]), float(facts["reward_shift"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{file}: expected beta and reward_shift of the training, found none; train the policy with its stage"
        ) from None


def held_out_prompts(completions: Path) -> pa.Table:
    """One row of each held-out prompt, the first.

    Raises:
        ContractError: `completions` is missing or damaged.
        ValueError: no prompt is held out.
    """
    table = read_table(completions, COMPLETIONS, columns=["prompt_id", "split", "prompt", "messages", "source"])
    rows = table.filter(pc.equal(table["split"], "test"))
    first = {prompt_id: index for index, prompt_id in reversed(list(enumerate(rows["prompt_id"].to_pylist())))}
    held_out = rows.take(pa.array(sorted(first.values()), pa.int64()))
    if not len(held_out):
        raise ValueError(
            f"{completions}: expected held-out prompts, found none; raise normalization.test_share, or look at the "
            "warnings in the metrics of normalization, for one group of prompts may hold the rows (normalization.twins)"
        )
    return held_out


def prompt_slices(prompts: pa.Table, slice_by: str | None) -> dict[str, str | None]:
    """The slice of each prompt by its id; empty without `slice_by`.

    Raises:
        ValueError: no held-out row of the log has such a column.
    """
    if slice_by is None:
        return {}
    sources = [json.loads(source) for source in prompts["source"].to_pylist()]
    if not any(slice_by in source for source in sources):
        known = sorted({name for source in sources for name in source})
        raise ValueError(
            f"evaluation.slice_by: expected a column of the log, found no {slice_by!r} in the held-out rows; "
            f"name one of [{', '.join(known)}], or null"
        )
    names = [source.get(slice_by) for source in sources]
    texts = [name if name is None or isinstance(name, str) else json.dumps(name) for name in names]
    return dict(zip(prompts["prompt_id"].to_pylist(), texts, strict=True))


def labelled_rows(tokens: Path, reference_logps: Path) -> pa.Table:
    """Held-out rows with a label, and their log-probability under the reference as `reference_logps`.

    Raises:
        ContractError: an artifact is missing or damaged, or `reference_logps` is of other rows than `tokens`.
    """
    rows = scored_tokens(tokens, reference_logps)
    return rows.filter(pc.and_(pc.equal(rows["split"], "test"), pc.is_valid(rows["label"])))


def choose_prompts(prompts: pa.Table, *, num_prompts: int, seed: int) -> pa.Table:
    """The prompts that are sampled from: those whose hash is smallest, so that a new prompt displaces one at most."""
    ids = prompts["prompt_id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda index: content_id("evaluation", seed, ids[index]))
    # Without a type, no prompts at all would be of none.
    return prompts.take(pa.array(sorted(order[:num_prompts]), pa.int64()))
