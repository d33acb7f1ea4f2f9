"""What is saved with a policy of how it is to be served."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from stages.text.serving import serving_meta, with_defaults

BODY = "{% for m in messages %}{{ mood }}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("start", ["", "\n", "\n\n ", "  ", "  {% if mood %}", "{%- if mood %}"])
def test_defaults_of_arguments_change_nothing_else_of_a_template(start):
    template = start + BODY + ("{% endif %}" if "if" in start else "")
    conversation, arguments = [[{"role": "user", "content": "hi"}]], {"mood": "so ", "calm": True}

    (expected,), _ = render_jinja_template(conversation, chat_template=template, **arguments)
    (found,), _ = render_jinja_template(conversation, chat_template=with_defaults(template, arguments))
    (other,), _ = render_jinja_template(conversation, chat_template=with_defaults(template, arguments), mood="no ")

    assert found == expected
    assert other == expected.replace("so ", "no ")


def test_a_template_without_arguments_stays_as_it_is():
    assert with_defaults(BODY, {}) == BODY


def test_ends_that_the_makers_list_are_not_listed_again():
    facts = {"template": None, "arguments": {}, "listed": ["<eos>", "<end>"]}

    assert serving_meta(**facts, ends=["<end>"]) == {}
    assert serving_meta(**facts, ends=["<end>", "<call>"])["serving"]["stop_tokens"] == ["<eos>", "<end>", "<call>"]
