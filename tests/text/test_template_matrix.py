"""Templates times kinds of conversation: each cell is right, or rejected with its reason; none is wrong.

What is right is checked by lines of its own here: the prompt is what `apply_chat_template` gives a server, every text
stands once, in order, on its side, only the assistant's words are learned, and an answer ends where generation stops.
"""

import functools
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from stages.text.chat_template import DEFAULT_DATE, ChatRenderer
from stages.text.jinja_templates import frozen_template
from stages.text.layouts import read_feedback
from stages.text.reasons import RejectedRowError
from tests.text.chat_templates import SHAPES, TALKS, Shape, Talk, tokenizer_of

WHEEL = Path.home() / ".cache/plumbline_tests/trl_1.12.0/trl/chat_templates"
_STOPS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",  # noqa: RUF001
    "gemma4": "<turn|>",
    "diffusion": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm": "<|user|>",
    "gptoss": "<|return|>",
    "llama3": "<|eot_id|>",
    "phi": "<|end|>",
    "muse": "<|eot|>",
    "idefics": "<end_of_utterance>",
    "llava": "<|im_end|>",
}


_HEADERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|START_OF_TURN_TOKEN|>")


def outcome(shape: Shape, talk: Talk, **arguments: bool) -> str:
    """`right`, the reason of a reject, or `wrong: ...`, where the template is given these arguments."""
    tokenizer = tokenizer_of(shape)
    row = {"prompt": talk.prompt, "completion": talk.answer, "tools": talk.tools}
    try:
        feedback = read_feedback(row)
        renderer = ChatRenderer(tokenizer, arguments=arguments)
        rendered = renderer.render(feedback.prompt, feedback.completions, tools=feedback.tools)
    except RejectedRowError as rejected:
        return rejected.reason
    problem = _problem(tokenizer, shape, talk, rendered, arguments)
    return f"wrong: {problem}" if problem else "right"


def _problem(tokenizer, shape, talk, rendered, arguments):
    prompt, completion = rendered.prompt, rendered.completions[0]
    spans = rendered.spans[0] or ((0, len(completion)),)
    said = _texts(talk.answer[-1])[-1]
    tail = max((completion.rpartition(form)[2] for form in said if form in completion), key=len, default="")
    checks = {
        "a prompt that no server sends": prompt in _served(tokenizer, talk, arguments),
        "a thought behind a closed one": not (arguments and _thinks(talk) and prompt.rstrip().endswith("</think>")),
        "a text of the prompt is missing": _in_order(prompt, [_texts(message) for message in talk.prompt]),
        "a text of the answer is missing": _in_order(completion, [_texts(message) for message in talk.answer]),
        "an end that isn't one": shape.eos not in tail.removesuffix(shape.eos) and not tail.endswith("\n"),
        "words on the wrong side of the loss": _are_told_apart(completion, spans, talk.answer),
    }
    return next((problem for problem, is_fine in checks.items() if not is_fine), None)


def _thinks(talk):
    return any(message.get("reasoning_content") or "<think>" in (message["content"] or "") for message in talk.answer)


def _are_told_apart(completion, spans, answer):
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        return False
    # Behind an answer's end another one has a header, which nobody says.
    if len(spans) > 1 and any(header in completion[slice(*span)] for span in spans for header in _HEADERS):
        return False
    own = "".join(completion[start:end] for start, end in spans)
    others = "".join(completion[end:start] for (_, end), (start, _) in itertools.pairwise(spans))
    for message in answer:
        is_own = message["role"] == "assistant"
        for forms in _texts(message):
            if not any(form in (own if is_own else others) for form in forms):
                return False
            if not is_own and any(form in own for form in forms):
                return False
    return True


def _served(tokenizer, talk, arguments):
    """What servers may send: arguments as objects or as text, no content as null, content as parts."""
    is_open = talk.prompt[-1]["role"] == "assistant"
    flags = {"continue_final_message" if is_open else "add_generation_prompt": True}
    prompts = []
    for as_text, no_content, as_parts, renames in itertools.product((False, True), ("", None), *[(False, True)] * 2):
        messages = json.loads(json.dumps(talk.prompt))
        for message in messages:
            if renames:
                message["role"] = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
            for call in message.get("tool_calls") or []:
                given = call["function"]["arguments"]
                values = json.loads(given) if isinstance(given, str) else given
                call["function"]["arguments"] = json.dumps(values) if as_text else values
            message["content"] = message["content"] or no_content
            if as_parts and message["content"] is not None:
                message["content"] = [{"type": "text", "text": message["content"]}]
        try:
            template = frozen_template(tokenizer.chat_template, DEFAULT_DATE)
            served = tokenizer.apply_chat_template(
                messages, tools=talk.tools, chat_template=template, tokenize=False, **flags, **arguments
            )
        except Exception:  # noqa: BLE001, S112 - templates fail in their own ways
            continue
        prompts.append(served)
    return prompts


def _texts(message):
    """What a message says, each in the forms in which it may be written."""
    found = [message.get("reasoning_content")]
    found += (message["content"] or "").replace("</think>", "<think>").split("<think>")
    forms = [(text.strip(), json.dumps(text.strip())[1:-1]) for text in found if text and text.strip()]
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
        forms += [(call["function"]["name"],)]
        forms += [(str(text),) for item in values.items() for text in item]
    return forms


def _in_order(text, messages):
    """Whether the texts of each message stand behind those of the one before; every word of a talk is its own."""
    position = 0
    for texts in messages:
        places = []
        for forms in texts:
            starts = [(text.find(form, position), len(form)) for form in forms]
            starts = [(start, size) for start, size in starts if start >= 0]
            if not starts:
                return False
            places.append(sum(starts[0]))
        position = max(places, default=position)
    return '\\"town' not in text and "{'" not in text


def wheel_templates() -> dict[str, Shape]:
    """The templates of TRL's wheel, by file."""
    shapes = {}
    for file in sorted(WHEEL.glob("*.jinja")):
        stop = next((stop for name, stop in _STOPS.items() if file.name.startswith(name)), "<|im_end|>")
        shapes[file.stem] = Shape(file.read_text(encoding="utf-8"), stop, "<bos>")
    return shapes


@pytest.mark.parametrize("name", SHAPES)
def test_no_cell_is_wrong(name):
    outcomes = {kind: outcome(SHAPES[name], talk) for kind, talk in TALKS.items()}

    assert not {kind: found for kind, found in outcomes.items() if found.startswith("wrong")}


@pytest.mark.parametrize("name", ["switches_thinking", "thinks_last"])
@pytest.mark.parametrize("is_on", [False, True])
def test_no_cell_is_wrong_whether_a_server_lets_the_model_think(name, is_on):
    outcomes = {kind: outcome(SHAPES[name], talk, enable_thinking=is_on) for kind, talk in TALKS.items()}

    assert not {kind: found for kind, found in outcomes.items() if found.startswith("wrong")}


def test_a_template_that_reads_everything_has_everything_right():
    readers = {"tools_as_json": {"reasoning_field", "earlier_reasoning_field"}, "chatml": set()}
    wordy = {kind for kind, talk in TALKS.items() if talk.tools is None and "reasoning_field" not in kind}

    for name, not_read in readers.items():
        kinds = TALKS.keys() - not_read if not_read else wordy
        assert {kind: outcome(SHAPES[name], TALKS[kind]) for kind in kinds} == dict.fromkeys(kinds, "right")


@pytest.mark.skipif(not WHEEL.is_dir(), reason=f"the templates of trl 1.12.0 aren't in {WHEEL.parents[1]}")
@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}], ids=["as it is", "without thinking"])
def test_no_cell_of_trls_templates_is_wrong(arguments):
    wrong = {}
    for name, shape in wheel_templates().items():
        for kind, talk in TALKS.items() if not arguments or "enable_thinking" in shape.template else ():
            if (found := outcome(shape, talk, **arguments)).startswith("wrong"):
                wrong[name, kind] = found

    assert not wrong


_WORDS = st.text(alphabet="abc \n<>/think|.{}'\"é世\\", min_size=0, max_size=12)
_TURNS = st.lists(st.tuples(_WORDS, _WORDS), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ["chatml", "headers", "turns_without_system", "tools_as_json", "thinks_last"])
@settings(max_examples=60, deadline=None)
@given(turns=_TURNS, num_prompt=st.integers(1, 4))
def test_spans_give_the_texts_back(name, turns, num_prompt):
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]  # noqa: B905
    first = min(2 * num_prompt - 1, len(messages) - 1)
    renderer = _renderer(name)

    try:
        rendered = renderer.render(messages[:first], [messages[first:]])
    except RejectedRowError:
        return
    completion, spans = rendered.completions[0], rendered.spans[0]
    spans = spans or ((0, len(completion)),)

    assert len(spans) == len(messages[first::2])
    for (start, end), message in zip(spans, messages[first::2], strict=True):
        said = completion[start:end].partition(SHAPES[name].eos)[0].replace("<end_of_turn>", "")
        said = (
            said.split("</think>\n\n")[-1] if name == "thinks_last" and "</think>" not in message["content"] else said
        )
        assert said.strip() == message["content"].strip()
    for message in messages[:first]:
        assert message["content"].strip() in rendered.prompt


@functools.cache
def _renderer(name):
    return ChatRenderer(tokenizer_of(SHAPES[name]))


@pytest.mark.parametrize("kind", ["plain", "several_turns", "user_in_answer", "answer_twice", "two_systems"])
def test_spans_are_those_that_a_template_marks_as_generated(kind):
    shape, talk = SHAPES["chatml_with_marks"], TALKS[kind]
    rendered = ChatRenderer(tokenizer_of(shape)).render(talk.prompt, [talk.answer])
    spans = rendered.spans[0] or ((0, len(rendered.completions[0])),)

    (text,), (marked,) = render_jinja_template(
        [[*talk.prompt, *talk.answer]], chat_template=shape.template, return_assistant_tokens_mask=True
    )

    seam = len(rendered.prompt)
    assert text.startswith(rendered.prompt + rendered.completions[0])
    assert [(start + seam, end + seam) for start, end in spans] == [span for span in marked if span[0] >= seam]


def test_the_page_of_templates_is_current():
    # Here, for the page is made of what stands above.
    from tests.text.template_page import page

    expected = (Path(__file__).resolve().parents[2] / "docs" / "templates.md").read_text(encoding="utf-8")

    assert page() == expected, "python -m tests.text.template_page > docs/templates.md"
