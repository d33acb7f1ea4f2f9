"""What users wrote, out of messages as a log gives them."""

import json

import pytest

from stages.text.messages import user_text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("plain text", "plain text"),
        ([{"role": "user", "content": "first"}, {"role": "assistant", "content": "b"}], "first"),
        ([{"role": "user", "content": "first"}, {"role": "user", "content": "last"}], "last"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "text", "text": "two"}]}],
            "part\ntwo",
        ),
        ([{"role": "system", "content": "no user here"}], "no user here"),
        ([{"role": "user", "content": None}], ""),
        ([], ""),
    ],
)
def test_what_the_user_wrote_last_is_read(prompt, expected):
    assert user_text(json.dumps({"prompt": prompt, "completion": "x"})) == expected
