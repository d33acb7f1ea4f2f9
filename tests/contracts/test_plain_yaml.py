"""YAML that a few lines unfold without end."""

import pytest

from stages.contracts.plain_yaml import MAX_VALUES, load_yaml


def bomb(levels, form):
    lines = ["a0: &a0 {x: 1}"]
    return "\n".join(lines + [f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * 9)) for i in range(1, levels)])


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"], ids=["lists", "merges"])
def test_aliases_of_aliases_are_refused_at_once(form):
    text = bomb(12, form)
    assert len(text) < 800

    with pytest.raises(ValueError, match="expected at most 100,000 values, found .* once aliases are followed"):
        load_yaml(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "one that stands for itself"),
        ("[" * 3000 + "]" * 3000, "too many within one another"),
        ("a: [", "expected YAML: "),
        ("a: 1\n---\nb: 1", "expected YAML: .*single document"),
    ],
)
def test_what_is_no_plain_yaml_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        load_yaml(text)


def test_plain_aliases_are_read():
    assert load_yaml("a: &a {x: [1, 2]}\nb: {<<: *a, y: 1.5}\nc: *a") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2], "y": 1.5},
        "c": {"x": [1, 2]},
    }
    assert load_yaml("# nothing") is None
    assert len(load_yaml("[" + "1, " * (MAX_VALUES - 2) + "]")) == MAX_VALUES - 2
