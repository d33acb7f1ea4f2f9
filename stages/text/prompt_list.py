"""Lists of prompts: text files with a prompt on each line."""

from pathlib import Path
from typing import NamedTuple

from stages.contracts.rows import content_id, split_of


class PromptList(NamedTuple):
    """The prompts of a file, each once, in the order in which they first stand there."""

    rows: list[dict[str, str]]
    """With `prompt_id`, `prompt` and `split` each."""
    num_lines: int
    counts: dict[str, int]
    """Prompts to train on (`train`) and held out (`test`); lines that are `empty` or `repeated`."""


def read_prompts(path: Path) -> list[str]:
    """Text of each line, without the spaces around it; lines may be empty.

    Raises:
        ValueError: the file can't be read, or isn't UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a text file in UTF-8 with a prompt on each line, found: {error}") from None


def read_prompt_list(path: Path, *, test_share: float) -> PromptList:
    """The prompts of a file, with the side of the split that each stands on.

    Args:
        path: text file.
        test_share: share of prompts held out, 0 to 1.

    Raises:
        ValueError: the file can't be read, or one side of the split has no prompt.
    """
    lines = read_prompts(path)
    prompts = [line for line in lines if line]
    rows = []
    for prompt in dict.fromkeys(prompts):
        prompt_id = content_id(prompt)
        rows.append({"prompt_id": prompt_id, "prompt": prompt, "split": split_of(prompt_id, test_share=test_share)})
    sides = [row["split"] for row in rows]
    counts = {
        "train": sides.count("train"),
        "test": sides.count("test"),
        "empty": len(lines) - len(prompts),
        "repeated": len(prompts) - len(rows),
    }
    if not counts["train"] or not counts["test"]:
        raise ValueError(
            f"{path}: expected prompts to train on and others to hold out, found {counts['train']} and "
            f"{counts['test']}; add prompts, or change image_prompts.test_share"
        )
    return PromptList(rows, len(lines), counts)
