"""Decides which columns of a log are read and as what, from what was seen of them; what stays unclear stops the run.

A column that is named like a vote or like a part of the question, and that nothing reads, would change labels or
prompts in silence. So it is read where its meaning is known, and otherwise it is an error that names the setting.
"""

import difflib
import re
from collections.abc import Mapping, Sequence

from stages.text import column_names as names
from stages.text.column_survey import Survey
from stages.text.columns import (
    ANSWERS,
    CONVERSATIONS,
    OTHER_SIDE,
    PROMPTS,
    SIDES,
    WINNERS,
    Place,
    Shape,
    as_number,
    place_of_word,
    side_of,
)
from stages.text.layouts import COLUMNS
from stages.text.votes import rating_of

_SCORES = frozenset({"score", "scores", "rating", "reward", "upvotes", "likes", "quality", "helpfulness"})
"""Of which more is better, where each of two answers has one."""
_FROM_ZERO: Mapping[float, Place] = {0.0: "first", 1.0: "second"}
_FROM_ONE: Mapping[float, Place] = {0.0: "tie", 1.0: "first", 2.0: "second"}
_ANSWER_WORDS = frozenset(
    {"response", "responses", "answer", "answers", "completion", "completions", "output", "outputs", "reply", "replies"}
    | {"generation", "generations", "candidate", "candidates", "samples", "original", "draft"}
)
_NO_TEXT = re.compile(r"\S*\d\S*|https?://\S+|\S+@\S+|[\d\s:.,+/TZ-]+", re.IGNORECASE)


def shape_of(survey: Survey) -> Shape:
    """What the columns of a log are.

    Raises:
        ValueError: a setting names no column, or a column may change labels or prompts and nothing reads it.
    """
    return _Judge(survey).shape()


class _Judge:
    """Decides what the columns are from what was seen of them."""

    def __init__(self, survey: Survey) -> None:
        settings, columns = survey.settings, survey.columns
        self.settings, self.columns, self.num_rows = settings, columns, survey.num_rows
        self.found, self.differing, self.disagree = survey.found, survey.differing(), survey.disagree
        self.against, self.in_messages = survey.against, survey.in_messages
        self.problems: list[str] = []
        self.said: list[str] = []
        self.names = settings.named()
        self.free = [name for name in columns if not settings.is_left_out(name) and name not in self.names.values()]
        self.read: set[str] = set(self.names.values()) | set(settings.prompt_parts)
        self.unlike = survey.unlike
        self.one_hot: dict[str, Place] = {}
        self.scores: tuple[str, str] | None = None

    def shape(self) -> Shape:
        self._check_names()
        pair, winner = self._pair()
        prompt, parts = self._question()
        self._answer(pair)
        self._end()
        if pair is None:
            self._check_answers()
        counts = None if winner or pair else self._counts()
        if winner is None and counts is None:
            self._label(is_pair=bool(self.one_hot or self.scores) or (self._has("chosen") and self._has("rejected")))
        self._check_scores()
        places, models = self._places(pair, winner)
        about = {
            name: self.names.get(name) or names.first_of(self._plain(), wanted)
            for name, wanted in (
                ("rater", names.RATERS),
                ("time", names.TIMES),
                ("conversation", names.CONVERSATIONS),
                ("turn", names.TURNS),
            )
        }
        about["correction"] = self.names.get("correction") or names.first_of(self.free, names.CORRECTIONS)
        about = {name: None if self.settings.is_left_out(name) else value for name, value in about.items()}
        if about["correction"]:
            self.said.append(
                f"{about['correction']} holds answers that were mended; pairs_from: [corrections] learns them"
            )
        self._check_messages()
        self._unread_parts(prompt)
        if self.problems:
            listed = "".join(f"\n- {problem}" for problem in self.problems)
            raise ValueError(f"the log can be read in more ways than one; say in ingestion which is right:{listed}")
        self.read |= {value for value in about.values() if value} | set(parts)
        self.read |= {name for name in self.free if names.canonical(name) in names.RETRACTIONS}
        unread = {name: column.rows for name, column in self.columns.items() if name not in self.read | set(COLUMNS)}
        return Shape(
            dict(self.names),
            parts,
            pair,
            winner,
            places,
            self.scores,
            self.one_hot,
            models,
            counts,
            about["rater"],
            about["time"],
            about["conversation"],
            about["turn"],
            about["correction"],
            self._has_answers(prompt),
            tuple(self.said),
            dict(sorted(unread.items())),
        )

    def _plain(self) -> list[str]:
        """Columns that may say who, when and where: no text, no objects."""
        return [
            name
            for name in self.free
            if not self.columns[name].objects
            and (self.columns[name].texts < self.columns[name].rows / 2 or names.canonical(name) in names.TIMES)
        ]

    def _has(self, name: str) -> bool:
        return name in self.names or (name in self.columns and not self.settings.is_left_out(name))

    def _check_names(self) -> None:
        for name, path in [*self.names.items(), *(("prompt_parts", path) for path in self.settings.prompt_parts)]:
            if path not in self.found and self.num_rows:
                near = difflib.get_close_matches(path, self.columns, 1, 0.4)
                known = f"nearest is {near[0]}" if near else f"the columns are {', '.join(sorted(self.columns))}"
                self.problems.append(f"columns: {{{name}: {path}}} names a column that no row has; {known}")

    def _take(self, ours: str, name: str, why: str) -> None:
        self.names[ours] = name
        self.read.add(name)
        if name in self.free:
            self.free.remove(name)
        if name != ours:
            self.said.append(f"{name} is read as {ours} ({why}); columns: {{{ours}: {name}}} says so")

    # ---- two answers, one better ----

    def _pair(self) -> tuple[tuple[str, str] | None, str | None]:
        named = (self.names.get("chosen"), self.names.get("rejected"))
        spelled = {names.canonical(name): name for name in self.free}
        found = [
            (spelled[name], spelled[f"{name[: len(name) - len(side[1])]}{OTHER_SIDE[side[1]]}"])
            for name in spelled
            if (side := side_of(name)) and side[1] in OTHER_SIDE
            if f"{name[: len(name) - len(side[1])]}{OTHER_SIDE[side[1]]}" in spelled
        ]
        texts = [pair for pair in found if self.columns[pair[0]].texts + self.columns[pair[0]].objects]
        is_named = named[0] is not None and named[1] is not None
        if is_named and named[0] and named[1]:
            is_said = "winner" in self.names or "label" in self.names
            winner = self._winner(is_sided=is_said or side_of(names.canonical(named[0])) is not None)
            if winner and winner not in self.names.values():
                self.said.append(f"{winner} says which of {named[0]} and {named[1]} is better")
            return (named[0], named[1]) if winner else None, winner
        if self._has("chosen") and self._has("rejected"):
            self._check_codes(texts)
            winner = self._winner(is_sided=False)
            return ("chosen", "rejected") if winner else None, winner
        if not (texts or found) or self._has("completion") or self._has("messages"):
            return None, None
        return self._decided_pair((texts or found)[0])

    def _check_codes(self, texts: Sequence[tuple[str, str]]) -> None:
        """Chosen and rejected that hold the names of answers in other columns."""
        column = self.columns.get("chosen")
        if texts and column and column.is_choice(self.num_rows) and all(map(place_of_word, column.values)):
            self.problems.append(
                f"chosen holds {column.shown()}, and {texts[0][0]} and {texts[0][1]} are two answers; "
                "columns: {winner: chosen, rejected: none} says that it names the better one"
            )

    def _decided_pair(self, pair: tuple[str, str]) -> tuple[tuple[str, str] | None, str | None]:
        """Two answers by their names, and the column that says which is better."""
        for name in self.free:
            if not {"swap", "swapped", "flip", "flipped"}.isdisjoint(names.canonical(name).split("_")):
                self.problems.append(
                    f"{name} holds {self.columns[name].shown()}, so that {pair[0]} may not be the answer that the word "
                    f"for the better one means; put them into one order, or columns: {{{name}: none}} if they are"
                )
        self.one_hot = self._one_hot()
        if self.one_hot:
            self.read |= {*pair, *self.one_hot}
            self.said.append(f"of {pair[0]} and {pair[1]} the one is better that {' and '.join(self.one_hot)} say")
            return pair, None
        winner = self._winner(is_sided=True)
        if winner is None and (scores := self._scores()):
            self.scores = scores
            self.read |= {*pair, *scores}
            self.said.append(
                f"of {pair[0]} and {pair[1]} the one with the larger of {scores[0]} and {scores[1]} is better; "
                f"columns: {{{scores[0]}: none}} leaves these out"
            )
            return pair, None
        if winner is None:
            self.problems.append(
                f"{pair[0]} and {pair[1]} are two answers, and no column says which is better; "
                f"columns: {{winner: NAME}}, or {{chosen: {pair[0]}, rejected: {pair[1]}}} if the first always is"
            )
            return None, None
        self.read |= set(pair)
        self.said.append(f"{pair[0]} and {pair[1]} are two answers, of which {winner} says which is better")
        return pair, winner

    def _scores(self) -> tuple[str, str] | None:
        """Columns such as `score_0` and `score_1`, all numbers."""
        spelled = {names.canonical(name): name for name in self.free}
        for name, column in spelled.items():
            match = SIDES.fullmatch(name)
            if match is None or match["side"] not in OTHER_SIDE or match["base"].rstrip("_") not in _SCORES:
                continue
            other = spelled.get(f"{name.removesuffix(match['side'])}{OTHER_SIDE[match['side']]}")
            if other and all(self.columns[one].numbers == self.columns[one].rows for one in (column, other)):
                return column, other
        return None

    def _one_hot(self) -> dict[str, Place]:
        """Columns such as `winner_model_a`, `winner_model_b` and `winner_tie`, each true or false."""
        if not {"winner", "label"}.isdisjoint(self.names):
            return {}
        found: dict[str, Place] = {}
        for name in self.free:
            first, _, side = names.canonical(name).partition("_")
            place = place_of_word(side) if first in ("winner", "preferred", "better") and side else None
            is_truth = {value.casefold() for value in self.columns[name].values} <= {"0", "1", "true", "false"}
            if place is not None and is_truth:
                found[name] = place
        return found if {"first", "second"} <= set(found.values()) and len(set(found.values())) == len(found) else {}

    def _winner(self, *, is_sided: bool) -> str | None:
        """The column that says which of two answers is better."""
        chosen = self.names.get("winner") or self.names.get("label")
        if chosen is None:
            spelled = {names.canonical(name): name for name in self.free if not self.columns[name].objects}
            wanted = [name for name in spelled if name in WINNERS or names.is_vote(name)]
            if not is_sided:
                wanted = [
                    name
                    for name in wanted
                    if self.columns[spelled[name]].beside_pair and {"chosen", "rejected"}.isdisjoint(name.split("_"))
                ]
            sided = [name for name in wanted if not SIDES.fullmatch(name) and self._is_word(name, spelled[name])]
            ranked = sorted(sided, key=lambda name: (WINNERS.index(name) if name in WINNERS else 99, name))
            chosen = spelled[ranked[0]] if ranked else None
            self._check_unlike(chosen, [spelled[name] for name in ranked[1:]])
        if chosen is None or chosen not in self.columns:
            return None
        words = self.columns[chosen].values if is_sided else self.columns[chosen].beside_pair
        if set(words) <= {"1", "True", "true", "chosen", "1.0"} and (not is_sided or self._has("chosen")):
            # It says of every row that the chosen answer is better.
            return None
        if not is_sided and not self.settings.winners:
            self.problems.append(
                f"{chosen} stands beside chosen and rejected and holds {self.columns[chosen].shown()}; "
                f"columns: {{{chosen}: none}} leaves it out, winners: {{WORD: first, WORD: second}} lets it decide"
            )
            return None
        self.read.add(chosen)
        return chosen

    def _check_unlike(self, chosen: str | None, others: Sequence[str]) -> None:
        """Two columns that may each name the better answer, and don't name the same."""
        for other in others:
            differ = self.unlike.get((chosen or "", other), 0) + self.unlike.get((other, chosen or ""), 0)
            if differ:
                self.problems.append(
                    f"{chosen} and {other} may each say which answer is better, and differ in {differ:,} rows; "
                    f"columns: {{winner: {chosen}, {other}: none}} takes the one"
                )

    def _is_word(self, name: str, column: str) -> bool:
        """Whether a column may say in a word which of two answers is better."""
        return name in WINNERS or not self.columns[column].texts

    def _places(
        self, pair: tuple[str, str] | None, winner: str | None
    ) -> tuple[Mapping[str, Place], tuple[str, str] | None]:
        if pair is None or winner is None:
            return {}, None
        words = list(self.columns[winner].values)
        places = {word: place for word in words if (place := self._place_of(word, words, pair))}
        # YAML's true is True, whatever the log writes.
        said = {word.casefold(): place for word, place in self.settings.winners.items()} | {**self.settings.winners}
        for word in words:
            if (place := said.get(word, said.get(word.casefold()))) is not None:
                places[word] = place
        unknown = {word: self.columns[winner].values[word] for word in words if word not in places}
        if not unknown and not self.columns[winner].has_more:
            return places, None
        models = self._models()
        if models and set(unknown) <= set(self.columns[models[0]].values) | set(self.columns[models[1]].values):
            return places, models
        listed = ", ".join(f"{word} ({count:,})" for word, count in sorted(unknown.items())[:12])
        self.problems.append(
            f"{winner} says which of two answers is better, and its words aren't known: {listed}; "
            f"winners: {{{next(iter(sorted(unknown)), 'WORD')}: first, WORD: second, WORD: tie}}"
        )
        return places, None

    def _place_of(self, word: str, words: Sequence[str], pair: tuple[str, str]) -> Place | None:
        numbers = [as_number(item) for item in words]
        number = as_number(word)
        if number is None:
            return place_of_word(word)
        known = [item for item in numbers if item is not None]
        side = side_of(names.canonical(pair[0]))
        is_from_zero = side is not None and side[1] == "0"
        if set(known) <= {0.0, 1.0} or is_from_zero:
            # Of 0 and 1 it is known only beside answers that are numbered so.
            return _FROM_ZERO.get(number) if is_from_zero else None
        if set(known) <= {0.0, 1.0, 2.0}:
            return _FROM_ONE[number]
        if min(known) < 1 or max(known) > 2:
            return None
        return "tie" if number == 1.5 else "first" if number < 1.5 else "second"

    def _models(self) -> tuple[str, str] | None:
        spelled = {names.canonical(name): name for name in self.columns}
        for base in ("model", "generator", "system", "engine", "agent"):
            for first, second in OTHER_SIDE.items():
                for between in ("_", ""):
                    found = (f"{base}{between}{first}", f"{base}{between}{second}")
                    if found[0] in spelled and found[1] in spelled:
                        return spelled[found[0]], spelled[found[1]]
        return None

    # ---- question and answer ----

    def _question(self) -> tuple[str | None, tuple[str, ...]]:
        if self.settings.prompt_parts:
            return None, tuple(self.settings.prompt_parts)
        prompt = self.names.get("prompt")
        if prompt is None and not any(map(self._has, CONVERSATIONS)) and not self._has("prompt"):
            prompt = names.first_of(self.free, PROMPTS)
            if prompt and self._looks_answered():
                self._take("prompt", prompt, "by its name")
        prompt = prompt or ("prompt" if self._has("prompt") else None)
        self._check_object(prompt)
        parts: tuple[str, ...] = ()
        if prompt and names.canonical(prompt) == "instruction":
            spelled = {names.canonical(name): name for name in self.free}
            found = [spelled[name] for name in ("input", "context") if name in spelled]
            if len(found) == 1:
                parts = (prompt, found[0])
                self.read.add(found[0])
                self.said.append(
                    f"{found[0]} follows {prompt} in the prompt; columns: {{{found[0]}: none}} leaves it out"
                )
        is_asked = prompt is not None or bool(parts)
        for name, is_used in (("system", is_asked or any(map(self._has, CONVERSATIONS))), ("history", is_asked)):
            if name in self.free and is_used:
                self.read.add(name)
        return prompt, parts

    def _check_object(self, prompt: str | None) -> None:
        """A question that is an object, and no message."""
        column = self.columns.get(prompt or "")
        if column and column.objects == column.rows and column.keys and {"role", "from"}.isdisjoint(column.keys):
            listed = ", ".join(sorted(column.keys))
            text = max(column.keys, key=lambda key: ("text" in key, key in ("content", "question", "prompt"), key))
            self.problems.append(
                f"{prompt} holds objects with text under {listed}; columns: {{prompt: {prompt}.{text}}} says which is "
                "the question"
            )

    def _looks_answered(self) -> bool:
        spelled = {names.canonical(name) for name in self.columns}
        sided = any(side_of(name) for name in spelled)
        answers = bool(spelled & set(ANSWERS)) or bool({"completion", "chosen"} & set(self.names))
        return answers or sided or "chosen" in spelled

    def _end(self) -> None:
        """Why generation of the answer ended, as other servers call it."""
        name = names.first_of(self.free, ("stop_reason", "done_reason", "finish_reason"))
        if name and not self._has("finish_reason") and not self._has("chosen"):
            self._take("finish_reason", name, "by its name")

    def _answer(self, pair: tuple[str, str] | None) -> None:
        is_conversation = any(map(self._has, CONVERSATIONS))
        is_asked = is_conversation or self._has("prompt") or bool(self.settings.prompt_parts)
        if pair or not is_asked or self._has("completion") or self._has("chosen"):
            return
        spelled = {names.canonical(name): name for name in self.free}
        found = [spelled[name] for name in ANSWERS if name in spelled]
        if len(found) == 1:
            self._take("completion", found[0], "by its name")
        elif len(found) > 1 and not is_conversation:
            self.problems.append(f"{' and '.join(found)} may each be the answer; columns: {{completion: {found[0]}}}")

    def _check_answers(self) -> None:
        """Where no column is the answer, rows are prompts alone: so none may be named like one."""
        if (
            self._has("completion")
            or self._has("chosen")
            or any(map(self._has, CONVERSATIONS))
            or not self._has("prompt")
        ):
            return
        found = [
            name
            for name in self.free
            if name not in self.read and not names.is_metadata(name) and not names.is_vote(name)
            if not _ANSWER_WORDS.isdisjoint(names.canonical(name).split("_"))
            if self.columns[name].texts + self.columns[name].nested == self.columns[name].rows
        ]
        lists = [name for name in found if self.columns[name].nested]
        if lists:
            self.problems.append(
                f"{lists[0]} holds several answers, and neither ranks nor scores beside them, such as ranks: [1, 2] or "
                f"scores: [0.9, 0.2]; format: package.module:function reads such records, "
                f"columns: {{{lists[0]}: none}} takes the prompts alone"
            )
        elif found:
            both = f" or {{chosen: {found[0]}, rejected: {found[1]}}}" if len(found) > 1 else ""
            none = ", ".join(f"{name}: none" for name in found)
            self.problems.append(
                f"{' and '.join(found)} may be answers; columns: {{completion: {found[0]}}}{both} reads them, "
                f"{{{none}}} takes the prompts alone"
            )

    def _has_answers(self, prompt: str | None) -> bool:
        column = self.columns.get(prompt or "")
        answer = self.columns.get(self.names.get("completion", "completion"))
        if answer is not None and answer.ids < 0.9 * answer.rows:
            return True
        return column is None or column.ids < 0.9 * column.rows or column.rows == 0

    # ---- votes ----

    def _counts(self) -> tuple[str, str] | None:
        if ("up" in self.names) != ("down" in self.names):
            self.problems.append("columns names one of up and down; name both")
        if "up" in self.names and "down" in self.names:
            return self.names["up"], self.names["down"]
        up = names.first_of(self.columns, names.UPS)
        down = names.first_of(self.columns, names.DOWNS)
        if up is None or down is None or self.settings.is_left_out(up) or self.settings.is_left_out(down):
            return None
        if self.names.get("label") in (up, down):
            self.problems.append(
                f"{up} and {down} are the votes for and against, and label reads one of them; "
                f"columns: {{up: {up}, down: {down}}} in its place"
            )
            return None
        if self._has("label"):
            return None
        self.read |= {up, down}
        self.said.append(f"{up} and {down} are read as the votes for and against; columns: {{up: {up}, down: {down}}}")
        return up, down

    def _label(self, *, is_pair: bool) -> None:
        votes = [name for name in self.columns if self._is_vote(name) and not self.settings.is_left_out(name)]
        others = [name for name in votes if name not in self.read and name != "label"]
        if self._has("label") or is_pair:
            self._check_negative()
            self._other_votes(others, is_pair=is_pair)
            return
        if self.settings.is_left_out("label") or not others:
            self._other_votes(others, is_pair=False)
            if not self.settings.is_left_out("label"):
                self._check_choices()
            return
        if len(others) > 1:
            listed = "; ".join(f"{name} holds {self.columns[name].shown()}" for name in others)
            none = ", ".join(f"{name}: none" for name in others[1:])
            self.problems.append(f"{listed}: which is the vote? columns: {{label: {others[0]}, {none}}}")
            return
        (name,) = others
        self._one_vote(name)

    def _is_vote(self, name: str) -> bool:
        column = self.columns[name]
        if names.is_vote(name):
            return True
        if names.canonical(name) in names.RETRACTIONS:
            return False
        is_word = column.words == column.rows > 0
        # True and false of an unknown column may well be thumbs.
        is_truth = column.truths == column.rows and len(column.values) > 1
        return (is_word or is_truth) and not names.is_metadata(name)

    def _one_vote(self, name: str) -> None:
        column = self.columns[name]
        values = {value.casefold() for value in column.values}
        # Of a button that only says one thing, false isn't the opposite; of one for "bad", true is no thumbs up.
        is_one_sided = names.canonical(name) in names.UPS and not values <= {"up", "down", "true", "1"}
        is_one_sided |= names.is_negative(name) and column.words < column.rows
        if column.lists and column.lists + column.clear == column.rows:
            self._take("label", name, f"its cells hold several votes: {column.shown()}")
            return
        if column.rows in (column.clear, column.words) and not is_one_sided:
            self._take("label", name, f"its values are votes: {column.shown()}")
            return
        what = "is named like a vote" if names.is_vote(name) else "may be a vote by its values"
        settings = f"columns: {{label: {name}}} reads it as the vote, {{{name}: none}} leaves it out"
        if {value.casefold() for value in column.values} <= {"true", "false"}:
            settings += "; label_words: {'true': undesired, 'false': none} says so of a button for what is bad"
        elif self.settings.spelling.threshold is not None:
            settings += "; label_words says what words mean"
        elif any(rating_of(value) is not None for value in column.values):
            settings += "; label_threshold says from which rating on an answer is desired"
        else:
            settings += "; label_words says what its words mean"
        if column.nested:
            settings += f"; columns: {{label: {name}.KEY}} reads what stands below a key of it, {{up: {name}.KEY, "
            settings += f"down: {name}.KEY}} two numbers of votes"
        self.problems.append(f"{name} {what} and holds {column.shown()}; {settings}")

    def _check_choices(self) -> None:
        """Where no column is the vote, answers are learned as they are: so nothing may look like a choice of few."""
        if self.problems or not (self._looks_answered() or any(map(self._has, CONVERSATIONS))):
            return
        for name in self.free:
            column = self.columns[name]
            if names.is_about_vote(name):
                self.problems.append(
                    f"{name} comes with votes and holds {column.shown():.80}, and answers without votes are learned as "
                    f"demonstrations; columns: {{label: NAME}} says which column is the vote, {{{name}: none}} that "
                    "none is"
                )
                continue
            is_about = names.is_metadata(name) and not names.is_by_rater(name) and column.words < column.rows
            is_about &= not (column.judges or names.is_judging(name, column.values, column.numbers == column.rows))
            is_about |= name in self.read or name in COLUMNS or names.canonical(name) in names.TOPICS
            if is_about or not column.is_choice(self.num_rows):
                continue
            is_rank = names.canonical(name) in ("rank", "ranking")
            words = " with label_words: {'1': desired, '2': undesired}, as 1 is the best" if is_rank else ""
            self.problems.append(
                f"{name} may be a vote by its few values, {column.shown()}, and answers without votes are learned as "
                f"demonstrations; columns: {{label: {name}}} reads it as the vote{words}, "
                f"{{{name}: none}} leaves it out"
            )

    def _check_negative(self) -> None:
        """A column for what is bad, mapped to label, would turn every vote round."""
        name = self.names.get("label", "label")
        column = self.columns.get(name)
        if column and names.is_negative(name) and column.words < column.rows and not self.settings.spelling.words:
            self.problems.append(
                f"{name} is named for what is bad and holds {column.shown()}; label_words: {{'true': undesired, '1': "
                "undesired, 'false': none, '0': none} says what its values mean"
            )

    def _check_messages(self) -> None:
        """Votes in messages that no format reads, as they are on turns of the user or hold objects."""
        for name, count in sorted(self.in_messages.items()):
            if not self.settings.is_left_out(name):
                self.problems.append(
                    f"{name} ({count:,}) is named like a vote, and nothing reads it there; put a word or a number into "
                    f"the message of the answer, as in {{role: assistant, content: ..., rating: 1}}, or "
                    f"columns: {{{name}: none}}"
                )

    def _check_scores(self) -> None:
        for (better, worse), count in self.against.items():
            if not (self.settings.is_left_out(better) or self.settings.is_left_out(worse)):
                self.problems.append(
                    f"in {count:,} pairs {worse} is larger than {better}; columns: {{chosen: rejected, rejected: "
                    f"chosen}} if the pairs stand the other way round, {{{better}: none}} if these scores don't decide"
                )

    def _other_votes(self, others: Sequence[str], *, is_pair: bool) -> None:
        for name in others:
            if self.disagree.get(name):
                self.problems.append(
                    f"{name} says the opposite of label in {self.disagree[name]:,} rows; columns: {{label: {name}}} "
                    f"reads it, {{{name}: none}} leaves it out"
                )
            elif not is_pair or not self.columns[name].objects:
                self.said.append(f"nothing reads {name}, which holds {self.columns[name].shown()}")

    # ---- what nothing reads ----

    def _unread_parts(self, prompt: str | None) -> None:
        read = self.read | set(self.names.values()) | {prompt or "prompt"}
        for name in self.free:
            if name in read:
                continue
            if any(path.startswith(f"{name}.") for path in self.names.values()):
                continue
            is_part = names.canonical(name) in names.QUESTION_PARTS
            if is_part and self.columns[name].ids != self.columns[name].rows:
                what = f"is named like a part of the question and holds {self.columns[name].shown():.80}"
            elif name in self.differing and self._is_text(name):
                what = f"differs between rows of one prompt and holds {self.columns[name].shown():.80}"
            else:
                continue
            if names.canonical(name) in names.HISTORIES and self.columns[name].objects:
                setting = f"columns: {{history: {name}}} puts its turns before the question"
            elif prompt or self.settings.prompt_parts or any(map(self._has, CONVERSATIONS)):
                setting = f"prompt_parts: [{name}, {prompt or 'prompt'}] puts it before the question"
            else:
                setting = f"columns: {{prompt: {name}}} takes it for the question"
            self.problems.append(f"{name} {what}; {setting}, columns: {{{name}: none}} leaves it out")

    def _is_text(self, name: str) -> bool:
        return not all(_NO_TEXT.fullmatch(value) for value in self.columns[name].values)
