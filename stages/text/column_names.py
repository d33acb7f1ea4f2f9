"""What the names of columns say: which are votes, which identify somebody or something, which hold a time."""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from stages.text.votes import is_missing, is_no_vote, plain_scalar, unwrapped

_VOTES = frozenset(
    [
        "feedback",
        "rating",
        "ratings",
        "thumb",
        "thumbs",
        "thumbsup",
        "thumbsdown",
        "score",
        "scores",
        "like",
        "likes",
        "liked",
        "dislike",
        "dislikes",
        "disliked",
        "vote",
        "votes",
        "voted",
        "upvote",
        "upvotes",
        "upvoted",
        "downvote",
        "downvotes",
        "downvoted",
        "star",
        "stars",
        "reaction",
        "reactions",
        "grade",
        "verdict",
        "helpful",
        "unhelpful",
        "approved",
        "approval",
        "label",
        "labels",
        "preference",
        "preferred",
        "winner",
        "csat",
        "nps",
        "satisfaction",
        "satisfied",
        "evaluation",
        "judgement",
        "judgment",
        "annotation",
        "emoji",
        "opinion",
        *("good", "bad", "correct", "incorrect", "wrong", "acceptable", "accepted", "useful", "quality", "approve"),
        *("desirable", "desired", "undesired", "helpfulness", "correctness", "harmless", "harmlessness", "honesty"),
        *("relevance", "accuracy", "factuality", "usefulness", "reward", "rewards", "outcome", "annotations", "kto"),
        *("evaluations", "judgements", "judgments", "reviews", "toxicity", "overall"),
        *("bewertung", "wertung", "sterne", "daumen", "hilfreich", "valoracion", "calificacion", "voto", "votos"),
    ]
)
# Behind a name of a vote these say that the column is about the vote, and isn't one.
_ABOUT = frozenset(
    [
        "id",
        "ids",
        "uuid",
        "key",
        "time",
        "at",
        "date",
        "timestamp",
        "by",
        "user",
        "rater",
        "comment",
        "comments",
        "text",
        "reason",
        "reasons",
        "note",
        "notes",
        "explanation",
        "source",
        "version",
        "url",
        "stats",
        "config",
        "configid",
        "name",
        "tags",
        "details",
        "metadata",
        "index",
        "model",
        "scale",
        "reference",
        "response",
        "critique",
    ]
)
_REASONS = frozenset(
    {"comment", "comments", "text", "reason", "reasons", "note", "notes", "explanation", "tags", "details"}
)
QUESTION_PARTS = frozenset(
    [
        "input",
        "system",
        "context",
        "contexts",
        "history",
        "instruction",
        "instructions",
        "question",
        "query",
        "passage",
        "document",
        "documents",
        *("doc", "docs", "chunks", "retrieved_documents"),
        "background",
        "persona",
        "preamble",
        "system_prompt",
        "system_message",
        "user_input",
        "chat_history",
        "conversation_history",
        "previous_messages",
        "retrieved_context",
    ]
)
"""Columns that are part of a question by their name."""
HISTORIES = ("chat_history", "conversation_history", "previous_messages", "message_history")
METADATA = frozenset(
    [
        "id",
        "ids",
        "uuid",
        "guid",
        "hash",
        "key",
        "time",
        "times",
        "timestamp",
        "ts",
        "date",
        "datetime",
        "created",
        "updated",
        "at",
        "month",
        "year",
        "day",
        "week",
        "model",
        "models",
        "engine",
        "user",
        "users",
        "annotator",
        "annotators",
        "rater",
        "raters",
        "worker",
        "workers",
        "reviewer",
        "labeler",
        "voter",
        "author",
        "session",
        "chat",
        "conversation",
        "thread",
        "dialog",
        "turn",
        "turns",
        "index",
        "idx",
        "step",
        "round",
        "instance",
        "app",
        "application",
        "source",
        "sources",
        "dataset",
        "subset",
        "split",
        "topic",
        "topics",
        "category",
        "categories",
        "tag",
        "tags",
        "comment",
        "comments",
        "reason",
        "reasons",
        "explanation",
        "rationale",
        "critique",
        "note",
        "notes",
        "url",
        "link",
        "version",
        "latency",
        "duration",
        "tokens",
        "token",
        "cost",
        "price",
        "temperature",
        "seed",
        "rank",
        "ip",
        "email",
        "platform",
        "device",
        "client",
        "environment",
        "release",
        "project",
        "experiment",
        "run",
        "trace",
        "span",
        "status",
        "error",
        "finish",
        "stop",
        "strength",
        "margin",
        "generator",
        "provider",
        "revision",
        "batch",
        "task",
        "name",
        "title",
        "file",
        "line",
        "place",
        "method",
        "origin",
        "channel",
        "country",
        "region",
        "confidence",
        "agreement",
        "count",
        "num",
        "size",
        "length",
        "weight",
        *("event", "events", "action", "operation", "meta", "metadata", "params", "parameters", "usage", "config"),
        *("extra", "info", "details", "stats", "kwargs", "debug", "logprobs", "timing", "headers", "attributes"),
    ]
)
"""Words of names of columns that are about a row and no part of it."""
TOPICS = frozenset(
    {
        "language",
        "lang",
        "locale",
        "difficulty",
        "level",
        "type",
        "kind",
        "domain",
        "role",
        "style",
        "format",
        "subject",
    }
)
"""Columns of few values that say what a question is about, and no vote."""
RATERS = (
    *("rater", "rater_id", "annotator", "annotator_id", "voter", "voter_id", "worker", "worker_id", "reviewer"),
    *("reviewer_id", "labeler", "labeler_id", "evaluator", "user", "user_id", "userid", "username", "user_name"),
    *("author_user_id", "account_id", "email"),
)
TIMES = (
    *("voted_at", "rated_at", "feedback_at", "feedback_time", "updated_at", "modified_at", "time", "timestamp", "ts"),
    *("created_at", "created", "create_time", "created_time", "event_time", "date", "datetime", "start_time"),
)
RETRACTIONS = (
    *("retracted", "is_retracted", "retracted_at", "deleted", "is_deleted", "deleted_at", "removed", "is_removed"),
    *("removed_at", "withdrawn", "withdrawn_at", "undone", "cancelled", "canceled"),
)
"""Columns that say of a vote that it was taken back, by true or by when."""
CORRECTIONS = (
    *("correction", "corrected", "corrected_response", "corrected_answer", "corrected_output", "edited"),
    *("edited_response", "edited_answer", "edited_output", "improved_response", "ideal_response"),
)
CONVERSATIONS = (
    *("conversation", "conversation_id", "conv_id", "chat", "chat_id", "session", "session_id", "thread", "thread_id"),
    *("dialog", "dialog_id", "dialogue", "dialogue_id", "conversation_hash"),
)
CONVERSATION_IDS = tuple(name for name in CONVERSATIONS if name.endswith("_id"))
TURNS = (
    "rated_turn",
    "voted_turn",
    "target_turn",
    "feedback_turn",
    "turn",
    "turn_id",
    "turn_index",
    "turn_idx",
    "turn_number",
    "message_index",
    "step",
    "round",
)
_REFERENCES = (
    *("answer", "message", "response", "completion", "generation", "observation", "span", "run", "request", "target"),
    *("output", "item", "interaction", "prediction", "inference", "log", "record", "entry", "example", "sample"),
    *("for", "event", "trace"),
)
UPS = (
    *("up", "ups", "upvotes", "upvote", "upvoted", "thumbs_up", "thumbsup", "likes", "like", "liked", "num_up"),
    *("num_upvotes", "votes_up", "is_liked"),
)
DOWNS = (
    *("down", "downs", "downvotes", "downvote", "downvoted", "thumbs_down", "thumbsdown", "dislikes", "dislike"),
    *("disliked", "num_down", "num_downvotes", "votes_down", "is_disliked"),
)
_NEGATIVE = frozenset(
    {"bad", "wrong", "incorrect", "unhelpful", "undesired", "dislike", "dislikes", "disliked", "downvote", "downvotes"}
    | {
        "downvoted",
        "thumbsdown",
        "down",
        "toxicity",
        "toxic",
        "not",
        "reported",
        "flagged",
        "flag",
        "harmful",
        "unsafe",
    }
    | {"hallucination", "hallucinated", "hallucinates", "refused", "refusal", "offensive", "spam", "abuse", "complaint"}
    | {"failed", "rejected", "error", "issue", "problem"}
)
_SCALES = frozenset({"star", "stars", "sterne", "csat", "nps", "grade"})
_BY_RATER = re.compile(r"(rater|annotator|reviewer|labell?er|evaluator|judge|voter|worker|expert|human)_?(\d+|[a-e])")
OWN_IDS = ("id", "uuid", "_id")


@functools.lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """A name in lower case, its words joined by underscores."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^0-9a-z]+", "_", spaced.casefold()).strip("_") or name


@functools.lru_cache(maxsize=4096)
def is_vote(name: str) -> bool:
    """Whether a column is named like a vote."""
    head, _, last = name.rpartition(".")
    words = canonical(last).split("_")
    if words == ["y"] or (not _VOTES.isdisjoint(words) and words[-1] not in _ABOUT):
        return True
    # Of `rating.responses` in a flat table the first part says so.
    is_below = bool(head) and not _VOTES.isdisjoint(canonical(head).split("_"))
    return is_below and (_ABOUT | METADATA | _REASONS).isdisjoint(words)


@functools.lru_cache(maxsize=4096)
def is_about_vote(name: str) -> bool:
    """Whether a column is named for what comes with a vote, such as its reason, so that there is a vote somewhere."""
    words = canonical(name.rpartition(".")[2]).split("_")
    return words[0] in _VOTES and len(words) > 1 and words[-1] in _REASONS


@functools.lru_cache(maxsize=4096)
def is_metadata(name: str) -> bool:
    """Whether a column is by its name about a row, such as who wrote it and when."""
    return not METADATA.isdisjoint(canonical(name).split("_"))


def is_by_rater(name: str) -> bool:
    """Whether a column is named for one of several raters, such as `annotator_2`, and may hold that one's votes."""
    return _BY_RATER.fullmatch(canonical(name)) is not None


def first_of(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The name that stands first in `wanted`, however it is spelled."""
    spelled = {canonical(name): name for name in names}
    return next((spelled[name] for name in wanted if name in spelled), None)


def references(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The kind and id of what a row names by an id, the most particular first; users and conversations left out."""
    found: list[tuple[int, str, str]] = []
    for name, value in row.items():
        kind = _reference(name)
        if kind is not None and (found_id := _as_id(value)) is not None:
            found.append((kind, _REFERENCES[kind], found_id))
    return [(kind, value) for _, kind, value in sorted(found)]


@functools.lru_cache(maxsize=4096)
def _reference(name: str) -> int | None:
    """Place in `_REFERENCES` of what a column names by an id; None of other columns."""
    words = canonical(name).removesuffix("_id").removesuffix("_uuid")
    return _REFERENCES.index(words) if words in _REFERENCES else None


def is_id(name: str) -> bool:
    """Whether a column identifies a row, or names an answer that a row is about."""
    return name in OWN_IDS or _reference(name) is not None


def own_id(row: Mapping[str, Any]) -> str | None:
    """The id of a row itself."""
    return next((found for name in OWN_IDS if (found := _as_id(row.get(name))) is not None), None)


def _as_id(value: Any) -> str | None:
    if value is None:
        return None
    value = plain_scalar(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) if re.fullmatch(r"\S{1,80}", str(value)) else None


@functools.lru_cache(maxsize=4096)
def is_scale(name: str) -> bool:
    """Whether a column is named for a scale on which 1 isn't the best."""
    return not _SCALES.isdisjoint(canonical(name.rpartition(".")[2]).split("_"))


@functools.lru_cache(maxsize=4096)
def speaks_of_votes(word: str) -> bool:
    """Whether a word such as `negative_feedback` or `thumb_down` says of a row that somebody voted on it."""
    words = canonical(word).split("_")
    return len(words) > 1 and not _SPOKEN.isdisjoint(words)


def is_judging(name: str, values: Iterable[str], is_numbers: bool) -> bool:
    """Whether a column that is about a row by its name may be a vote by its values.

    Numbers under `note`, which is French for a mark, under `rank`, and 0 and 1 under `status` and the like.
    """
    spelled = canonical(name)
    is_truth = {value.casefold() for value in values} <= {"0", "1", "-1", "true", "false"}
    return (is_numbers and spelled in _MARKS) or (is_truth and spelled in _STATES)


_SPOKEN = frozenset(
    {"thumb", "thumbs", "feedback", "vote", "voted", "upvote", "upvoted", "downvote", "downvoted", "like", "liked"}
    | {"dislike", "disliked", "rated", "rating"}
)
_MARKS = frozenset({"note", "notes", "rank", "ranking"})
_STATES = frozenset({"status", "state", "result", "finish", "action", "event", "type", "event_type"})


@functools.lru_cache(maxsize=4096)
def is_negative(name: str) -> bool:
    """Whether a column is named for what is bad, so that true says undesired."""
    return not _NEGATIVE.isdisjoint(canonical(name).split("_"))


def votes_in(value: Any) -> list[dict[str, Any]] | None:
    """The votes in a cell that holds a list of them, each with `label`, `rater` and `time`; None of another cell."""
    if not isinstance(value, list | tuple) or not value or (len(value) == 1 and not isinstance(value[0], Mapping)):
        return None
    found = []
    for item in value:
        if not isinstance(item, Mapping):
            found.append({"label": item, "rater": None, "time": None})
            continue
        is_plain = "value" in item and {"name", "key", "type"}.isdisjoint(item) and not is_no_vote(item["value"])
        vote = vote_in(item) or (("value", item["value"]) if is_plain else None)
        if vote is None:
            return None
        rater, time = first_of(item, (*RATERS, "by")), first_of(item, TIMES)
        found.append({"label": vote[1], "rater": item.get(rater or ""), "time": item.get(time or "")})
    return found


def points_elsewhere(vote: Any) -> bool:
    """Whether a vote in a cell names the message or the turn of a conversation that it is on."""
    if isinstance(vote, list | tuple):
        return any(map(points_elsewhere, vote))
    return isinstance(vote, Mapping) and any(
        canonical(name) in _POINTERS and not is_missing(plain_scalar(value)) for name, value in vote.items()
    )


_POINTERS = {*TURNS, "message_uuid", *(f"{kind}_id" for kind in ("message", "answer", "response", "completion"))}


def unread_vote_keys(turns: Any) -> set[str]:
    """Keys of messages that are named like votes and hold something."""
    return {
        str(key)
        for turn in (turns if isinstance(turns, list) else ())
        for key, value in (turn.items() if isinstance(turn, Mapping) else ())
        if is_vote(str(key)) and not is_no_vote(value)
    }


def vote_in(row: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The name and value of the first vote in an object, such as a message; None without one.

    Of a button that says one thing, such as `liked`, only that it was pressed is a vote.
    """
    for name, value in row.items():
        if not is_vote(name) or is_missing(plain_scalar(value)) or is_no_vote(value):
            continue
        vote = unwrapped(value)
        if isinstance(vote, list) and (several := votes_in(vote)):
            return name, several
        if isinstance(vote, Mapping | list) or is_no_vote(vote):
            continue
        if isinstance(vote, bool | int) and (is_negative(name) or canonical(name) in UPS):
            if vote:
                return name, not is_negative(name)
        else:
            # A plain 1 is the worst of stars, wherever they stand.
            is_stars = is_scale(name) and isinstance(vote, int | float) and not isinstance(vote, bool)
            return name, f"{vote:g} stars" if is_stars else vote
    return None
