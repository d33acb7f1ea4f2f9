"""A world in which the true worth of any answer is known, for the demo and for measuring corrections in it.

People ask about eight topics, a model answers each part of a question rightly with the skill that it has on the
topic, and people vote. The true reward of an answer is the share of its parts that are right; a vote depends on it
and on how harshly people judge the topic:

    P(up) = sigmoid(2.5 * (right parts - 1.7) + rater bias of the topic)

Questions that got thumbs up then differ from those that got thumbs down, for one of two reasons. In the world
`rater_bias` the model is equally good everywhere and people judge some topics more harshly. In `competence` people
judge alike and the model is worse at some topics. Either everybody votes, or those who are moved to: the pleased where
most are pleased, and the annoyed where most are annoyed, which makes the two kinds of questions differ more.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from stages.demo.topics import TOPICS, Topic

WorldName = Literal["rater_bias", "competence"]
Voters = Literal["all", "moved"]

PARTS = 3
VOTE_SLOPE = 2.5
VOTE_MIDPOINT = 1.7
TRUTH_KIND = "demo_truth"


class Question(NamedTuple):
    """A prompt and what it asks."""

    topic: Topic
    text: str
    words: tuple[str, ...]

    @property
    def right_parts(self) -> tuple[str, ...]:
        """The right answer, part by part."""
        return tuple(self.topic.answers[word] for word in self.words)


class TopicTraits(NamedTuple):
    """What a world says about one topic."""

    skill: float
    """Probability that the model gets a part right."""
    rater_bias: float
    """Added to the logit of a thumbs up; negative where people judge harshly."""
    pleased_vote: float = 1.0
    """Probability that somebody who would give a thumbs up votes."""
    annoyed_vote: float = 1.0
    """The same of a thumbs down."""


def make_world(name: WorldName, *, voters: Voters = "all", seed: int) -> dict[str, TopicTraits]:
    """Traits of each topic; the seed decides which topic gets which.

    Args:
        name: `rater_bias` has equal skill everywhere and biases from +4 to -4; `competence` has no bias and skills
            from 85 % to 25 %.
        voters: whether `all` vote, or those who are `moved`: from the topic with most thumbs up to that with fewest,
            from 95 % to 5 % of the pleased and from 5 % to 95 % of the annoyed.
        seed: seed of the order of the topics.
    """
    count = len(TOPICS)
    skills = np.full(count, 0.5) if name == "rater_bias" else np.linspace(0.85, 0.25, count)
    biases = np.linspace(4.0, -4.0, count) if name == "rater_bias" else np.zeros(count)
    pleased = np.ones(count) if voters == "all" else np.linspace(0.95, 0.05, count)
    annoyed = np.ones(count) if voters == "all" else np.linspace(0.05, 0.95, count)
    order = np.random.default_rng([seed, 0]).permutation(count)
    return {
        TOPICS[topic].name: TopicTraits(*(round(float(trait), 6) for trait in traits))
        for topic, *traits in zip(order, skills, biases, pleased, annoyed, strict=True)
    }


def draw_question(rng: np.random.Generator) -> Question:
    """A question of any topic, about three different words."""
    topic = TOPICS[rng.integers(len(TOPICS))]
    template = topic.templates[rng.integers(len(topic.templates))]
    known = list(topic.answers)
    words = tuple(known[i] for i in rng.permutation(len(known))[:PARTS])
    return Question(topic, template.format(*words), words)


def draw_answer(question: Question, *, skill: float, rng: np.random.Generator) -> tuple[str, ...]:
    """An answer of a model that gets each part right with probability `skill`, else says another of the topic."""
    parts = []
    for right in question.right_parts:
        wrong = [answer for answer in question.topic.answers.values() if answer != right]
        parts.append(right if rng.random() < skill else wrong[rng.integers(len(wrong))])
    return tuple(parts)


def up_probability(right_parts: float, *, rater_bias: float) -> float:
    """Probability of a thumbs up for an answer with so many right parts."""
    return float(1.0 / (1.0 + np.exp(-(VOTE_SLOPE * (right_parts - VOTE_MIDPOINT) + rater_bias))))


def answer_text(parts: tuple[str, ...]) -> str:
    """The parts as the model says them."""
    return ", ".join(parts)


def describe_truth(name: WorldName, world: Mapping[str, TopicTraits]) -> dict[str, Any]:
    """What nobody who learns from the log may know, as JSON: which answers are right, and how people vote."""
    return {
        "kind": TRUTH_KIND,
        "version": 1,
        "world": name,
        "vote": {"slope": VOTE_SLOPE, "midpoint": VOTE_MIDPOINT},
        "topics": [
            {
                "name": topic.name,
                "templates": list(topic.templates),
                "answers": topic.answers,
                **world[topic.name]._asdict(),
            }
            for topic in TOPICS
        ],
    }


def demo_judge(prompt: str, completion: str) -> float:
    """The true reward, 0 to 1, of a completion to a prompt of the demo.

    The prompt may have a chat template's text around it; of several questions in it, the last one counts. Any
    completion gets a reward: its parts are what stands between commas, a part is right at its place or wrong, and
    more than three parts share the reward that three would get.

    Args:
        prompt: text of the prompt.
        completion: text of the completion.

    Raises:
        ValueError: the prompt is no question of the demo.
    """
    found = [(match, answers) for pattern, answers in _questions() for match in pattern.finditer(prompt)]
    found = [(match, answers) for match, answers in found if all(word in answers for word in match.groups())]
    if not found:
        raise ValueError(
            f"expected a question of the demo, found {prompt!r}; set evaluation.judge to none for a log of your own"
        )
    match, answers = max(found, key=lambda item: item[0].start())
    right = [answers[word].casefold() for word in match.groups()]
    return _share_right(right, _parts(completion))


@cache
def _questions() -> list[tuple[re.Pattern[str], Mapping[str, str]]]:
    return [(_question_pattern(template), topic.answers) for topic in TOPICS for template in topic.templates]


def _question_pattern(template: str) -> re.Pattern[str]:
    return re.compile(r"(\w+)".join(re.escape(piece) for piece in template.split("{}")))


def _parts(completion: str) -> list[str]:
    """What stands between commas; special tokens and a full stop at the end are no part of it."""
    text = re.sub(r"<\|[^|]*\|>", " ", completion).strip().rstrip(".")
    return [" ".join(part.split()).casefold() for part in text.split(",")]


def _share_right(right: list[str], parts: list[str]) -> float:
    hits = sum(expected == found for expected, found in zip(right, parts, strict=False))
    return hits / max(len(right), len(parts))
