"""Limits of a config's fields, and sections made of them."""

import dataclasses
from typing import Annotated, Literal

import pytest
from annotated_types import Interval
from pydantic import PositiveFloat, PositiveInt, ValidationError

from stages.contracts.stage import Section
from stages.trainers.core.fields import check_fields, config_values, section_fields


@dataclasses.dataclass
class Config:
    """How to train."""

    steps: PositiveInt = 10
    """Steps."""
    clip: PositiveFloat | None = 1
    """Bound; None
    sets none."""
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Of all."""
    kind: Literal["a", "b"] = "a"
    """How."""
    folder: str = "logs"
    """Where."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "expected steps above 0, found 0"),
        ({"steps": None}, "expected steps as a number, found None"),
        ({"clip": -1.0}, "expected clip above 0 or None, found -1.0"),
        ({"clip": float("nan")}, "expected clip above 0 or None, found nan"),
        ({"share": 1.5}, "expected share above 0 and up to 1, found 1.5"),
        ({"kind": "c"}, "expected kind as one of a, b, found 'c'"),
    ],
)
def test_what_lies_outside_a_types_limits_is_refused(given, message):
    check_fields(Config(clip=None))

    with pytest.raises(ValueError, match=message):
        check_fields(Config(**given))


def test_a_section_has_types_limits_defaults_and_docstrings_of_the_config():
    class Params(section_fields(Section, Config, "steps clip", kind="b")):
        """With one of its own."""

        epochs: int = 3

    properties = Params.model_json_schema()["properties"]

    assert properties["steps"] == {
        "default": 10, "description": "Steps.", "exclusiveMinimum": 0, "title": "Steps", "type": "integer"
    }  # fmt: skip
    assert properties["clip"]["description"] == "Bound; null\nsets none."
    assert list(properties) == ["steps", "clip", "kind", "epochs"]
    assert repr(Params().clip) == "1.0"
    assert config_values(Params(), Config) == {"steps": 10, "clip": 1.0, "kind": "b"}
    with pytest.raises(ValidationError, match="greater than 0"):
        Params(steps=0)
