"""Sides of the split by group, so that nothing held out is learned from in another form.

A group is a conversation, or what a column names, such as a rater; and prompts that differ only in case, white space
or the numbers in them are one. The first row of a group in the log decides its side by a hash, so that rows that are
added later move no row that was there.
"""

import hashlib
import re
from typing import Any, Literal

from stages.contracts.rows import Split, canonical_json, content_id, split_of
from stages.text.layouts import Text
from stages.text.reasons import RejectedRowError

_MIN_WORDS = 3
Twins = Literal["numbers", "case", "exact"]
"""Which prompts are one: those that differ in numbers, case and white space, in case and white space, or in nothing."""


class SplitGroups:
    """Puts rows on their side of the split, in the order of the log.

    Args:
        test_share: share of groups held out.
        twins: which prompts are one.
    """

    def __init__(self, *, test_share: float, twins: Twins = "numbers") -> None:
        self.test_share, self.twins = test_share, twins
        # By hash of a group or prompt, twice the number of its rows, and 1 more if it is held out: a log has as many
        # of these as prompts, and one small number for each takes half the memory of a side and a size.
        self._known: dict[int, int] = {}

    def side_of(self, prompt: Text, prompt_id: str, group: str | None) -> Split:
        """The side of a row.

        Args:
            prompt: as given.
            prompt_id: hash of the prompt as given.
            group: conversation or other group that it belongs to; None groups by prompt alone.

        Raises:
            RejectedRowError: its conversation and its prompt stand on two sides already.
        """
        keys = [_digest(f"prompt {_alike(prompt, self.twins)}")]
        if group is not None:
            keys.insert(0, _digest(f"group {group}"))
        known = {self._known[key] & 1 for key in keys if key in self._known}
        if len(known) > 1:
            raise RejectedRowError(
                "split_conflict",
                "rows of its conversation or group are held out, and rows of its prompt aren't, or vice versa",
            )
        new = split_of(prompt_id if group is None else content_id("group", group), test_share=self.test_share)
        is_held_out = known.pop() if known else int(new == "test")
        for key in keys:
            self._known.setdefault(key, is_held_out)
        self._known[keys[0]] += 2
        return "test" if is_held_out else "train"

    def counts(self) -> dict[str, Any]:
        """How many groups there are, on which sides, and the share of the rows that the largest has."""
        largest = max((value >> 1 for value in self._known.values()), default=0)
        total = sum(value >> 1 for value in self._known.values())
        return {
            "groups": sum(value > 1 for value in self._known.values()),
            "held_out": sum(value > 1 and value & 1 for value in self._known.values()),
            "largest_share": round(largest / total, 4) if total else 0.0,
        }


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _alike(prompt: Text, twins: Twins) -> str:
    """What prompts have in common that are one.

    Of a conversation its beginning counts up to the first answer, since later turns repeat it. Numbers count where
    there is little else, as in "Question 7".
    """
    if isinstance(prompt, str):
        text = prompt
    else:
        turns = [(turn["role"], str(turn.get("content"))) for turn in prompt]
        end = next((i for i, (role, _) in enumerate(turns) if role == "assistant"), len(turns))
        text = canonical_json([f"{role}: {content}" for role, content in turns[: end or 1]])
        if end == 1 or not end:
            text = turns[0][1]
    if twins == "exact":
        return text
    words = text.casefold().split()
    if twins == "case":
        return " ".join(words)
    numbers = [word for word in words if any(character.isdigit() for character in word)]
    if len(words) - len(numbers) >= _MIN_WORDS and len(words) > 2 * len(numbers):
        words = [re.sub(r"\d+([.,]\d+)*", "0", word) for word in words]
    return " ".join(words)
