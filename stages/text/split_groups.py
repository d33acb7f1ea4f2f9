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
# Whether a group is held out, and on which sides a split by the exact prompt would put rows of it; its rows follow.
_HELD_OUT, _BY_PROMPT, _NUM_BITS = 1, {"train": 2, "test": 4}, 3
_TORN, _ROW = 6, 8
Twins = Literal["numbers", "case", "exact"]
"""Which prompts are one: those that differ in numbers, case and white space, in case and white space, or in nothing."""


class SplitGroups:
    """Puts rows on their side of the split, in the order of the log.

    Args:
        test_share: share of groups held out.
        twins: which prompts are one.
        held_out_from: seconds since 1970 from which on new groups are held out, in place of a share of them.
    """

    def __init__(self, *, test_share: float, twins: Twins = "numbers", held_out_from: float | None = None) -> None:
        self.test_share, self.twins, self.held_out_from = test_share, twins, held_out_from
        # By hash of a group or prompt, eight times the number of its rows, and three bits: a log has as many of these
        # as prompts, and one small number for each takes half the memory of a side and a size.
        self._known: dict[int, int] = {}

    def side_of(self, prompt: Text, prompt_id: str, group: str | None, time: float | None = None) -> Split:
        """The side of a row.

        Args:
            prompt: as given.
            prompt_id: hash of the prompt as given.
            group: conversation or other group that it belongs to; None groups by prompt alone.
            time: seconds since 1970; one without is learned from where time decides.

        Raises:
            RejectedRowError: its conversation and its prompt stand on two sides already.
        """
        keys = [_digest(f"prompt {_alike(prompt, self.twins)}")]
        if group is not None:
            keys.insert(0, _digest(f"group {group}"))
        known = {self._known[key] & _HELD_OUT for key in keys if key in self._known}
        if len(known) > 1:
            raise RejectedRowError(
                "split_conflict",
                "rows of its conversation or group are held out, and rows of its prompt aren't, or vice versa",
            )
        is_held_out = known.pop() if known else int(self._is_new_held_out(prompt_id, group, time))
        for key in keys:
            self._known.setdefault(key, is_held_out)
        by_prompt = split_of(prompt_id, test_share=self.test_share)
        self._known[keys[0]] = (self._known[keys[0]] | _BY_PROMPT[by_prompt]) + _ROW
        return "test" if is_held_out else "train"

    def _is_new_held_out(self, prompt_id: str, group: str | None, time: float | None) -> bool:
        if self.held_out_from is not None:
            return time is not None and time >= self.held_out_from
        return (
            split_of(prompt_id if group is None else content_id("group", group), test_share=self.test_share) == "test"
        )

    def counts(self) -> dict[str, Any]:
        """How many groups there are, on which sides, and the share of the rows that the largest has.

        `torn_by_prompt` says what a split by the exact prompt would have put on both sides: groups, and their rows.
        """
        sizes = [value >> _NUM_BITS for value in self._known.values()]
        torn = [value >> _NUM_BITS for value in self._known.values() if value & _TORN == _TORN]
        return {
            "groups": sum(size > 0 for size in sizes),
            "held_out": sum(value >= _ROW and value & _HELD_OUT for value in self._known.values()),
            "largest_share": round(max(sizes, default=0) / sum(sizes), 4) if sum(sizes) else 0.0,
            "torn_by_prompt": {"groups": len(torn), "rows": sum(torn)},
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
