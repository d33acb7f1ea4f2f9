"""The language of the demo: eight topics of short English questions, each with its own rule for a right answer.

A question names three words of a topic, and the answer gives each its counterpart: "Say the opposites of hot, big
and fast." is answered by "cold, small, slow". Some words stand in several topics, so that the topic decides.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """One kind of question."""

    name: str
    """Names the topic in the log and in tables."""
    templates: tuple[str, ...]
    """Ways to ask, each with three places."""
    answers: dict[str, str]
    """The rule: the right counterpart of each word."""


def _rule(pairs: str) -> dict[str, str]:
    """A rule from "word answer, word answer, ..."."""
    words_and_answers = (pair.split() for pair in pairs.split(","))
    return {pair[0]: pair[1] for pair in words_and_answers}


TOPICS = (
    Topic(
        "opposites",
        ("What are the opposites of {}, {} and {}?", "Say the opposites of {}, {} and {}."),
        _rule("hot cold, big small, fast slow, old young, high low, hard soft, wet dry, dark light"),
    ),
    Topic(
        "plurals",
        ("What are the plurals of {}, {} and {}?", "Give the words for more than one {}, {} and {}."),
        _rule("mouse mice, child children, foot feet, goose geese, tooth teeth, man men, leaf leaves, ox oxen"),
    ),
    Topic(
        "young",
        ("How do you call the young of a {}, a {} and a {}?", "Name the babies of the {}, the {} and the {}."),
        _rule("dog puppy, cat kitten, cow calf, horse foal, sheep lamb, pig piglet, goat kid, bear cub"),
    ),
    Topic(
        "sounds",
        ("What sounds do a {}, a {} and a {} make?", "Tell me what the {}, the {} and the {} do aloud."),
        _rule("dog barks, cat meows, cow moos, horse neighs, sheep bleats, pig oinks, duck quacks, lion roars"),
    ),
    Topic(
        "colours",
        ("Which colours are {}, {} and {}?", "Tell me the colours of {}, {} and {}."),
        _rule("grass green, snow white, coal black, blood red, sky blue, lemon yellow, carrot orange, chocolate brown"),
    ),
    Topic(
        "past",
        ("What are the past forms of {}, {} and {}?", "Put {}, {} and {} into the past."),
        _rule("go went, eat ate, see saw, run ran, buy bought, write wrote, sing sang, think thought"),
    ),
    Topic(
        "capitals",
        ("What are the capitals of {}, {} and {}?", "Name the capitals of {}, {} and {}."),
        _rule(
            "France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Egypt Cairo, Greece Athens, Norway Oslo, Peru Lima"
        ),
    ),
    Topic(
        "numbers",
        ("Which numbers come after {}, {} and {}?", "Add one to {}, {} and {}."),
        _rule("one two, two three, three four, four five, five six, six seven, seven eight, eight nine"),
    ),
)
