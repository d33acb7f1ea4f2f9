"""Prompts of the demo for images: every combination of a few words."""

from itertools import product

_COLOURS = ("red", "green", "blue", "white")
_THINGS = ("fox", "boat", "house", "apple", "bicycle", "lantern")
_PLACES = ("in the snow", "by the sea", "at night")


def image_prompts() -> list[str]:
    """The prompts, always in the same order."""
    return [f"a {colour} {thing} {place}" for colour, thing, place in product(_COLOURS, _THINGS, _PLACES)]
