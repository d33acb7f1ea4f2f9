"""Chat templates: the prompt is what the model is asked with, and the completion what it should then say."""

from datetime import date

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from stages.normalization import NormalizationParams, normal_form_of
from stages.text.chat_template import ChatRenderer, SpecialTokens
from stages.text.layouts import read_feedback
from stages.text.reasons import RejectedRowError
from tests.material import SHARED, needs_shared
from tests.text.chat_templates import SHAPES, tokenizer_of
from tests.text.tiny_tokenizers import CHATML, byte_level, chatml

SYSTEM = {"role": "system", "content": "S"}
ASKED = [{"role": "user", "content": "Hi"}]
ANSWERED = [{"role": "assistant", "content": "Yo"}]


def test_prompt_ends_with_the_generation_prompt_and_completion_with_the_end_of_turn():
    rendered = ChatRenderer(byte_level()).render([SYSTEM, *ASKED], [ANSWERED])

    assert rendered == ("<|system|>S</s><|user|>Hi</s><|assistant|>", ("Yo</s>",), (None,), (None,))


def test_nothing_stands_behind_the_eos_that_a_template_writes():
    rendered = ChatRenderer(chatml()).render(ASKED, [ANSWERED])

    assert rendered == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", ("Yo<|im_end|>",), (None,), (None,))


def test_an_open_turn_of_the_assistant_is_continued():
    opened = [*ASKED, {"role": "assistant", "content": "Par"}]

    rendered = ChatRenderer(byte_level()).render(opened, [[{"role": "assistant", "content": "tial"}]])

    assert rendered == ("<|user|>Hi</s><|assistant|>Par", ("tial</s>",), (None,), (None,))


def test_an_answer_that_was_cut_off_gets_no_end_of_turn():
    rendered = ChatRenderer(chatml()).render(ASKED, [ANSWERED, ANSWERED], are_complete=[False, True])

    assert rendered.completions == ("Yo", "Yo<|im_end|>")


def test_an_answer_that_doesnt_follow_on_the_servers_prompt_costs_the_row():
    # This generation prompt opens a thought that a finished turn doesn't show.
    template = CHATML.replace("<|im_start|>assistant\\n", "<|im_start|>assistant\\n<think>\\n")

    with pytest.raises(RejectedRowError, match=r"prompt_not_served.*<think>.*enable_thinking"):
        ChatRenderer(chatml(), template=template).render(ASKED, [ANSWERED])


def test_of_a_completion_of_several_turns_the_assistants_are_told_apart():
    answer = [*ANSWERED, {"role": "user", "content": "More"}, *ANSWERED]

    rendered = ChatRenderer(byte_level()).render(ASKED, [answer])

    assert rendered.completions == ("Yo</s><|user|>More</s><|assistant|>Yo</s>",)
    assert [rendered.completions[0][slice(*span)] for span in rendered.spans[0]] == ["Yo</s>", "Yo</s>"]


def test_tools_and_arguments_reach_the_template():
    template = "{{ tools | tojson if tools }}{{ mood }}" + CHATML
    renderer = ChatRenderer(chatml(), template=template, arguments={"mood": "calm"})
    tool = {"type": "function", "function": {"name": "f"}}

    assert renderer.render(ASKED, [], tools=[tool]).prompt.startswith(
        '[{"type": "function", "function": {"name": "f"}}]calm'
    )


def test_plain_text_is_left_as_it_is():
    assert ChatRenderer(byte_level()).render("Hi ", [" Yo"]) == ("Hi ", (" Yo",), (None,), (None,))


def test_messages_need_a_template():
    with pytest.raises(RejectedRowError, match=r"no_chat_template.*normalization.chat_template"):
        ChatRenderer(byte_level(template=None)).render(ASKED, [ANSWERED])


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system turns here') }}", "{{ messages[7].content }}", "{{ 1 / 0 }}", "{% if %}"],
)
def test_a_template_that_fails_costs_the_row(template):
    with pytest.raises(RejectedRowError, match="template_error"):
        ChatRenderer(chatml(), template=template).render(ASKED, [ANSWERED])


def test_a_template_that_drops_the_answer_costs_the_row():
    with pytest.raises(RejectedRowError, match=r"text_not_rendered: message 2 \(assistant\).*leaves out 'Yo'"):
        ChatRenderer(chatml(), template="{{ messages[0].content }}").render(ASKED, [ANSWERED])


def test_todays_date_is_the_one_given():
    template = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML

    rendered = ChatRenderer(chatml(), template=template, today=date(2024, 7, 26)).render(ASKED, [])

    assert rendered.prompt.startswith("26 Jul 2024")


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("{% set now = strftime_now %}{{ now('%Y') }}", "2024"),
        ("{% set own = namespace(now=strftime_now) %}{{ own.now('%-d.%-m.') }}", "6.7."),
        ("{% macro day() %}{{ strftime_now('%B' ~ ' %Y') }}{% endmacro %}{{ day() }}", "July 2024"),
        ("{% set how = {'f': '%d %b %Y'} %}{{ strftime_now(format=how.f) }}", "06 Jul 2024"),
        ("{{ strftime_now('%H:%M, 100%%Y') }}", "00:00, 100%Y"),
        ("\n {{ strftime_now('%j') }}", "\n 188"),
    ],
)
def test_the_clock_stands_still_under_every_name_and_format(asked, written):
    rendered = ChatRenderer(chatml(), template=asked + CHATML, today=date(2024, 7, 6)).render(ASKED, [ANSWERED])

    assert rendered.prompt == written + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "lots", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}", "{{ [['a']] | map('random') | list }}"]
)
def test_a_template_that_draws_lots_is_refused(lots):
    renderer = ChatRenderer(chatml(), template="\n" + lots + CHATML)

    with pytest.raises(
        RejectedRowError, match="the chat template writes something else each time, by .* in its line 2"
    ):
        renderer.render(ASKED, [ANSWERED])
    with pytest.raises(ValueError, match="normalization.chat_template: the chat template writes something else"):
        renderer.check_syntax()


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (
            "a\n{% for m in messages %}\n{{ m.content }\n",
            r"line 3 of .* no Jinja: unexpected '}': '{{ m.content }'; mend",
        ),
        (
            "{{ strftime_now('%Y') }}\n{% if %}",
            "line 2 of the chat template is no Jinja: .*'{% if %}'; mend that line of",
        ),
        ("\n{{ messages[0].content | shout }}", "line 2 of .* no Jinja: No filter named 'shout'"),
    ],
)
def test_a_template_that_is_no_jinja_is_named_with_its_line_before_any_row(template, match):
    with pytest.raises(ValueError, match=f"normalization.chat_template: {match}"):
        ChatRenderer(chatml(), template=template).check_syntax()


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (
            "{{ strftime_now('%Y') }}\n\n{{ messages[0].a.b }}",
            "line 3 of the chat template asks for what .* 'a': '{{ mess",
        ),
        (
            "{% macro each(m) %}\n{{ m.a.b }}{% endmacro %}\n{{ each(messages[0]) }}",
            "line 2 of .* normalization.chat_t",
        ),
        (
            "\n\n{{ raise_exception('no') }}",
            "line 3 of the chat template refuses the conversation: no; change the turns",
        ),
    ],
)
def test_a_template_that_fails_on_a_row_is_named_with_its_line(template, match):
    renderer = ChatRenderer(chatml(), template=template)

    renderer.check_syntax()
    with pytest.raises(RejectedRowError, match=f"template_error: {match}"):
        renderer.render(ASKED, [ANSWERED])


def test_control_tokens_are_found_wherever_somebody_typed_them():
    tokens = SpecialTokens(byte_level())

    assert tokens.find([{"role": "user", "content": "</s> <|assistant|>"}]) == "</s>"
    assert tokens.find("fine", [{"role": "<|user|>"}]) == "<|user|>"
    assert tokens.find({"a": {"<s>": 1}}) == "<s>"
    assert tokens.find("a < s > b", ["<S>"], 3, None) is None
    with pytest.raises(RejectedRowError, match=r"special_token_in_text.*special_tokens: keep"):
        tokens.refuse("</s>")


@needs_shared
def test_a_template_that_writes_empty_thoughts_keeps_them_in_the_prompt():
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "data/tokenizers/minimind")

    rendered = ChatRenderer(tokenizer).render([SYSTEM, *ASKED], [ANSWERED, [{"role": "assistant", "content": "\nYo"}]])

    assert rendered.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert rendered.completions == ("Yo<|im_end|>", "Yo<|im_end|>")


@needs_shared
def test_every_control_token_of_a_real_tokenizer_is_found():
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "data/tokenizers/minimind")
    tokens = SpecialTokens(tokenizer)

    for token in tokenizer.all_special_tokens:
        assert tokens.find(f"before{token}after") is not None
        assert not set(tokenizer(token[1:], add_special_tokens=False)["input_ids"]) & set(tokenizer.all_special_ids)


def turns(*texts, roles=("user", "assistant")):
    return [{"role": roles[place % len(roles)], "content": text} for place, text in enumerate(texts)]


def test_a_system_text_that_a_template_refuses_is_said_by_the_user_where_that_is_allowed():
    asked, answer = (
        [{"role": "system", "content": "be short"}, *turns("how tall is it?")],
        turns("tall", roles=["assistant"]),
    )
    shape = SHAPES["turns_without_system"]

    renderer = ChatRenderer(tokenizer_of(shape), fold_system=True)
    found = renderer.render(asked, [answer])

    assert found.prompt == "<bos><start_of_turn>user\nbe short\n\nhow tall is it?<end_of_turn>\n<start_of_turn>model\n"
    assert found.completions == ("tall<end_of_turn>",)
    assert renderer.sentences() == [
        "in 1 rows a system text, which the template doesn't take, was said in the user's first turn"
    ]
    with pytest.raises(RejectedRowError, match="template_error"):
        ChatRenderer(tokenizer_of(shape), join_turns=True).render(asked, [answer])


def test_a_system_text_that_a_template_takes_stays_where_it_is():
    asked = [{"role": "system", "content": "be short"}, *turns("how tall is it?")]

    renderer = ChatRenderer(tokenizer_of(SHAPES["chatml"]), fold_system=True, join_turns=True)

    assert renderer.render(asked, []).prompt.startswith("<|im_start|>system\nbe short<|im_end|>")
    assert renderer.sentences() == []


def test_turns_in_a_row_are_one_where_that_is_allowed_also_inside_a_completion():
    asked = turns("first", "second", roles=["user"])
    answer = [
        *turns("one", roles=["assistant"]),
        *turns("and", "then", roles=["user"]),
        *turns("two", roles=["assistant"]),
    ]
    tokenizer = tokenizer_of(SHAPES["inst_with_system_inside"])

    found = ChatRenderer(tokenizer, join_turns=True).render(asked, [answer])

    assert found.prompt == "<s>[INST] first\n\nsecond [/INST]"
    said = [found.completions[0][start:end] for start, end in found.spans[0]]
    assert said == [" one </s>", " two </s>"]
    assert "[INST] and\n\nthen [/INST]" in found.completions[0]
    with pytest.raises(RejectedRowError, match="roles must alternate"):
        ChatRenderer(tokenizer).render(asked, [answer])


def test_the_last_answer_alone_is_learned_where_that_is_asked_for():
    answer = turns("one", "and then", "two", roles=["assistant", "user"])

    found = ChatRenderer(tokenizer_of(SHAPES["chatml"]), learned_turns="last").render(turns("first"), [answer])

    assert [found.completions[0][start:end] for start, end in found.spans[0]] == ["two<|im_end|>"]
    assert ChatRenderer(tokenizer_of(SHAPES["chatml"]), learned_turns="last").render(
        turns("first"), [turns("one", roles=["assistant"])]
    ).spans == (None,)


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ({"content": "tall"}, "\n</think>\n\ntall<|end_of_sentence|>"),
        ({"content": "tall", "reasoning_content": "hm"}, "hm\n</think>\n\ntall<|end_of_sentence|>"),
        ({"content": "<think>\nhm\n</think>\n\ntall"}, "hm\n</think>\n\ntall<|end_of_sentence|>"),
    ],
)
def test_a_thought_that_the_servers_prompt_opens_and_the_template_drops_is_closed(answer, completion):
    renderer = ChatRenderer(tokenizer_of(SHAPES["thinks_and_forgets"]))

    found = renderer.render(turns("how tall is it?"), [[{"role": "assistant", **answer}]])

    assert found.prompt == "<|begin_of_sentence|><|User|>how tall is it?<|Assistant|><think>\n"
    assert found.completions == (completion,)
    assert "closes the thought" in renderer.sentences()[0]


def test_a_thought_that_a_server_can_switch_off_is_not_closed_for_it():
    template = SHAPES["thinks_and_forgets"].template + "{% if enable_thinking %}{% endif %}"

    with pytest.raises(RejectedRowError, match="prompt_not_served"):
        ChatRenderer(tokenizer_of(SHAPES["thinks_and_forgets"]), template=template).render(
            turns("how tall is it?"), [turns("tall", roles=["assistant"])]
        )


def test_an_end_that_nobody_lists_becomes_one_of_the_ends_that_are_saved():
    renderer = ChatRenderer(tokenizer_of(SHAPES["channels"]))
    call = {"function": {"name": "lookup", "arguments": {"town": "Oslo"}}}

    said = renderer.render([{"role": "user", "content": "How warm?"}], [[{"role": "assistant", "tool_calls": [call]}]])

    assert said.completions[0].endswith("<|call|>")
    assert renderer.ends() == ["<|call|>"]


def test_an_end_behind_an_answer_that_was_cut_off_is_none():
    renderer = ChatRenderer(tokenizer_of(SHAPES["chatml"]))

    renderer.render(
        [{"role": "user", "content": "hi"}], [[{"role": "assistant", "content": "hello"}]], are_complete=[False]
    )

    assert renderer.ends() == ["<|im_end|>"]


def _weighed(*weights, **settings):
    """The answers one, two and so on of a completion with these weights, as what is learned and what it weighs."""
    words = ("one", "two", "three")[: len(weights)]
    answer = []
    for word, weight in zip(words, weights, strict=True):
        own = {} if weight is None else {"weight": weight}
        answer += [{"role": "user", "content": "and then"}, {"role": "assistant", "content": word, **own}]
    renderer = ChatRenderer(tokenizer_of(SHAPES["chatml"]), **settings)
    found = renderer.render(turns("first"), [answer[1:]])
    spans = found.spans[0] or ((0, len(found.completions[0])),)
    return [found.completions[0][start:end].removesuffix("<|im_end|>") for start, end in spans], found.weights[0]


@pytest.mark.parametrize(
    ("weights", "settings", "learned"),
    [
        ((None, 1, 1.0), {}, (["one", "two", "three"], None)),
        ((0, 1, None), {}, (["two", "three"], None)),
        ((0.25, None, 2), {}, (["one", "two", "three"], (0.25, 1.0, 2.0))),
        ((None, None, None), {"turn_decay": 0.5}, (["one", "two", "three"], (0.25, 0.5, 1.0))),
        ((0, 0.5, None), {"turn_decay": 0.5}, (["two", "three"], (0.25, 1.0))),
        ((3, None, None), {"learned_turns": "last"}, (["three"], None)),
        ((0.5,), {"turn_decay": 0.5}, (["one"], (0.5,))),
    ],
)
def test_answers_weigh_what_their_messages_and_the_decay_say(weights, settings, learned):
    assert _weighed(*weights, **settings) == learned


def test_a_completion_of_which_nothing_is_learned_is_rejected():
    with pytest.raises(RejectedRowError, match="no_learned_turn: .*every one weighs 0; leave the row out"):
        _weighed(0, 0)


def test_a_weight_is_no_part_of_what_a_template_is_given():
    template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    answer = {"role": "assistant", "content": "tall", "weight": 1}

    found = ChatRenderer(byte_level(), template=template).render(turns("how"), [[answer]])

    assert "weight" not in found.prompt + found.completions[0]


def _normal_form(shape, **params):
    params = NormalizationParams(**params)
    return normal_form_of(params, tokenizer_of(SHAPES[shape]), stop_tokens=[])


def _made(shape, row, **params):
    normal_form = _normal_form(shape, **params)
    found = [row for part in normal_form.settled(read_feedback(row)) for row in normal_form.rows(part)]
    return [(row["prompt"], row["completion"]) for row in found]


_TALK = turns("one?", "one", "two?", "two", roles=["user", "assistant"])
_QUIET = {"enable_thinking": False}


def _as_served(*messages):
    return tokenizer_of(SHAPES["switches_thinking"]).apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, **_QUIET
    )


def test_each_answer_of_a_demonstration_follows_the_prompt_that_a_server_sends_at_its_turn():
    found = _made("switches_thinking", {"messages": _TALK}, template_arguments=_QUIET, learned_turns="each")

    assert found == [(_as_served(*_TALK[:1]), "one<|im_end|>"), (_as_served(*_TALK[:3]), "two<|im_end|>")]


def test_the_last_answer_follows_the_prompt_that_a_server_sends_at_its_turn():
    row = {"prompt": _TALK[:1], "completion": _TALK[1:], "label": True}

    found = _made("switches_thinking", row, template_arguments=_QUIET, learned_turns="last")

    assert found == [(_as_served(*_TALK[:3]), "two<|im_end|>")]


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (_TALK[1:], "message 2 .*otherwise once other turns follow it: log each answer .*learned_turns: each"),
        ([{**_TALK[1], "reasoning_content": "hm"}], "message 2 .*leave the thought out of the row, or set"),
    ],
)
def test_an_answer_that_no_prompt_without_thinking_leads_to_is_rejected_with_what_helps(answer, match):
    row = {"prompt": _TALK[:1], "completion": answer, "label": True}

    with pytest.raises(RejectedRowError, match=f"(?s)prompt_not_served: {match}"):
        _made("switches_thinking", row, template_arguments=_QUIET)


def test_a_thinking_server_that_asks_for_a_thought_which_the_answer_lacks_is_named_with_its_switch():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>\n' if enable_thinking | default(true) }}"
        "{% endif %}"
    )
    renderer = ChatRenderer(tokenizer_of(SHAPES["chatml"]), template=template)

    with pytest.raises(RejectedRowError, match=r"(?s)log the thinking .*such as enable_thinking: false"):
        renderer.render(_TALK[:1], [_TALK[1:2]])


@pytest.mark.parametrize("learned_turns", ["last", "each"])
def test_a_decay_of_one_answer_is_refused(learned_turns):
    with pytest.raises(ValidationError, match=f"learned_turns: {learned_turns} leaves one answer in a completion"):
        NormalizationParams(turn_decay=0.5, learned_turns=learned_turns)


def test_control_tokens_that_the_tokenizer_does_not_know_are_said():
    renderer = ChatRenderer(byte_level(), template=CHATML)
    assert renderer.sentences() == []

    renderer.render(ASKED, [ANSWERED])

    (said,) = renderer.sentences()
    assert said.startswith("the chat template writes <|im_start|>, <|im_end|>, which the tokenizer doesn't know")
    assert ChatRenderer(chatml()).unknown_tokens() == []
