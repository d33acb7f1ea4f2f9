"""Lists of prompts: each once, split by content, every line accounted for."""

import pytest

from stages.text.prompt_list import read_prompt_list


def listed(tmp_path, text, *, test_share=0.5):
    path = tmp_path / "prompts.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prompt_list(path, test_share=test_share)


def test_every_line_is_a_prompt_or_counted(tmp_path):
    lines = [f"prompt {i}" for i in range(20)]

    found = listed(tmp_path, "\r\n".join([*lines, "", "  prompt 3 ", "   "]) + "\n")

    assert [row["prompt"] for row in found.rows] == lines
    assert (found.counts["empty"], found.counts["repeated"]) == (2, 1)
    assert len(found.rows) + 3 == found.num_lines == 23


def test_a_prompt_stands_on_the_same_side_whatever_else_is_listed(tmp_path):
    few = listed(tmp_path, "\n".join(f"prompt {i}" for i in range(20)))
    many = listed(tmp_path, "\n".join(f"prompt {i}" for i in reversed(range(200))))

    sides = {row["prompt_id"]: row["split"] for row in many.rows}
    assert all(sides[row["prompt_id"]] == row["split"] for row in few.rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n", "expected prompts to train on and others to hold out"),
        ("", "found 0 and 0; add prompts"),
        (b"\xff\xfe", "expected a text file in UTF-8"),
    ],
)
def test_refuses_a_list_that_can_not_be_used(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, text)


def test_refuses_a_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.txt: expected a text file"):
        read_prompt_list(tmp_path / "nowhere.txt", test_share=0.2)
