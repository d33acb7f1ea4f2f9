"""Events of `feedback_events` read back: as feedback, and by the group that they are held out with."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from stages.contracts.rows import Split, canonical_json
from stages.text.columns import value_at
from stages.text.layouts import Feedback
from stages.text.split_groups import SplitGroups
from stages.text.votes import is_missing

_OF_EVENT = ("rater", "conversation", "model", "file")
_AS_GIVEN = ("prompt", "answer", "rejected", "tools", "vote", "source")


def feedback_of(event: Mapping[str, Any]) -> Feedback:
    """An event as feedback; where raters disagree, their numbers stand beside the other columns."""
    answers = [event[name] for name in ("answer", "rejected") if event[name] is not None]
    source = json.loads(event["source"])
    if event["disagree"] is not None and "votes" not in source:
        source["votes"] = {"agree": event["agree"], "disagree": event["disagree"]}
    are_complete = (event["is_complete"], event["is_rejected_complete"])
    return Feedback(
        event["layout"],
        json.loads(event["prompt"]),
        tuple(json.loads(answer) for answer in answers),
        event["label"],
        are_complete[: len(answers)],
        event["weight"],
        None if event["tools"] is None else json.loads(event["tools"]),
        source,
    )


def as_given(event: Mapping[str, Any]) -> str:
    """What the log says in an event, as JSON."""
    return canonical_json({name: json.loads(event[name]) for name in _AS_GIVEN if event[name] is not None})


class EventGroups:
    """Puts events on their side of the split, in the order of the log.

    Args:
        group_by: column whose values are held out whole: one of the log, or `rater`, `conversation`, `model` or `file`.
            None takes the conversation, where there is one.
        groups: sides of what came before.
    """

    def __init__(self, group_by: str | None, groups: SplitGroups) -> None:
        self.group_by, self.groups = group_by, groups
        self._is_found = group_by is None
        self._known = set(_OF_EVENT)

    def side_of(self, event: Mapping[str, Any], feedback: Feedback) -> Split:
        """The side of an event.

        Raises:
            RejectedRowError: its group and its prompt stand on two sides already.
        """
        group = event["conversation"]
        if self.group_by is not None:
            value = value_at(feedback.source, self.group_by)
            if is_missing(value):
                value = event.get(self.group_by) if self.group_by in _OF_EVENT else None
            self._is_found |= not is_missing(value)
            self._known |= feedback.source.keys() if len(self._known) < 200 else set()
            group = None if is_missing(value) else f"{self.group_by} {value}"
        return self.groups.side_of(feedback.prompt, feedback.prompt_id(), group, event.get("time"))

    def check(self) -> None:
        """Refuse a column that no event has.

        Raises:
            ValueError: there is none such; the nearest is named.
        """
        if not self._is_found:
            near = difflib.get_close_matches(str(self.group_by), self._known, 1)
            known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(self._known))}"
            raise ValueError(f"normalization.group_by: no event has a column {self.group_by}; {known}")
