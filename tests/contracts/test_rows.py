"""Row identity: a function of content alone, and a split that new rows never move."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.rows import content_id, split_of


def test_ids_are_the_same_in_every_process():
    command = [
        sys.executable,
        "-c",
        "from stages.contracts.rows import content_id; print(content_id('a', {'y': 1, 'x': 2}))",
    ]

    other = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})

    assert other.stdout.strip() == content_id("a", {"x": 2, "y": 1})


@given(st.text(), st.text(min_size=1))
def test_the_border_between_parts_counts(a, b):
    assert content_id(a, b) != content_id(a + b, "")


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_moves_prompts_to_the_test_side_and_none_back(prompt, one, other):
    small, large = sorted((one, other))

    if split_of(content_id(prompt), test_share=small) == "test":
        assert split_of(content_id(prompt), test_share=large) == "test"


def test_about_the_share_asked_for_is_held_out():
    sides = [split_of(content_id(f"prompt {i}"), test_share=0.2) for i in range(5000)]

    assert 0.18 < sides.count("test") / 5000 < 0.22
