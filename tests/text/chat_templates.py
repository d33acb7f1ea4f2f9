"""Chat templates in the shapes that models of today bring, in wording of our own, and conversations of every kind.

A shape is what a template does to its messages: which it reads, what it writes around them, where it ends a turn.
"""

import re
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_CALLS_AS_JSON = (
    '{% for c in m.tool_calls or [] %}<call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</call>{% endfor %}"
)


class Shape(NamedTuple):
    """A template and where its models stop."""

    template: str
    eos: str
    bos: str | None = None


SHAPES = {
    "chatml": Shape(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "chatml_with_marks": Shape(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "inst_with_system_inside": Shape(
        "{% if messages[0].role == 'system' %}{% set text = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set text = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate between user and assistant') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (text if loop.first else '') }}"
        "{{ m.content.strip() }} [/INST]"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        "<s>",
    ),
    "headers": Shape(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
        "<|begin_of_text|>",
    ),
    "inst_with_system_last": Shape(
        "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
        "{% if m.role == 'user' %}[INST] {% if loop.last and said is defined %}{{ said }}\n\n{% endif %}"
        "{{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
        "{% elif m.tool_calls is defined %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
        "{{ c.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}"
        "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        "<s>",
    ),
    "turns_without_system": Shape(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<eos>",
        "<bos>",
    ),
    "thinks_and_forgets": Shape(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "<|User|>{{ m.content }}{% elif m.role == 'assistant' and m.content is not none %}"
        "<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
        "<|end_of_sentence|>",
        "<|begin_of_sentence|>",
    ),
    "joins_arguments_as_text": Shape(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
        "{% elif m.role == 'user' %}<|User|>{{ m.content }}<|Assistant|>{% elif m.role == 'tool' %}"
        "<|output_begin|>{{ m.content }}<|output_end|>{% elif not m.content %}{% for c in m.tool_calls or [] %}"
        "<|call_begin|>{{ c.function.name + '\n' + c.function.arguments }}<|call_end|>{% endfor %}{{ eos_token }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        "<|end_of_sentence|>",
        "<|begin_of_sentence|>",
    ),
    "two_ends": Shape(
        "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}<|{{ m.role }}|>\n"
        "{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|endoftext|>",
    ),
    "eos_and_line_break": Shape(
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + eos_token }}"
        "{% elif m.role == 'system' %}{{ '<|system|>\n' + m.content + eos_token }}"
        "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "tools_as_json": Shape(
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
        "{% if m.role == 'tool' %}<|im_start|>user\n<result>\n{{ m.content }}\n</result><|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        + _CALLS_AS_JSON
        + "<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "tools_as_tags": Shape(
        "{% for m in messages %}{% if m.role == 'tool' %}<|tool|>{{ {'output': m.content} | tojson }}<|end|>"
        "{% else %}<|{{ m.role }}|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "<function={{ c.function.name }}>"
        "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>{{ v }}</parameter>{% endfor %}</function>"
        "{% endfor %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|end|>",
    ),
    "thinks_last": Shape(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% set thought = m.reasoning_content or '' %}{% set said = m.content or '' %}{% if '</think>' in said %}"
        "{% set thought = said.split('</think>')[0].split('<think>')[-1] %}{% set said = said.split('</think>')[-1] %}"
        "{% endif %}{% if loop.last %}<think>\n{{ thought.strip() }}\n</think>\n\n{% endif %}{{ said.strip() }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
        "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}",
        "<|im_end|>",
    ),
    "switches_thinking": Shape(
        "{% set asked = namespace(at=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set asked.at = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% if loop.index0 > asked.at and (loop.last or m.reasoning_content) %}"
        "{{ '<think>\n' + (m.reasoning_content or '').strip() + '\n</think>\n\n' }}{% endif %}{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}",
        "<|im_end|>",
    ),
    "counts_turns": Shape(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.index }}/{{ loop.length }}\n"
        "{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}",
        "<|im_end|>",
    ),
    "channels": Shape(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}{% if m.tool_calls %}"
        "<|start|>assistant to={{ m.tool_calls[0].function.name }}<|message|>"
        "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% else %}"
        "<|start|>assistant<|channel|>final<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% elif m.role == 'tool' %}"
        "<|start|>tool<|message|>{{ m.content | tojson }}<|end|>{% else %}<|start|>{{ m.role }}<|message|>"
        "{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|return|>",
    ),
    "reads_parts": Shape(
        "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% else %}<|image|>{% endif %}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|end|>",
    ),
    "plain_words": Shape(
        "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}",
        "</s>",
    ),
}

_CONTROL = re.compile(r"<\|[^|>\s'\"]+\|>|<｜[^｜\s]+｜>|<(?:start|end)_of_turn>|<\|?/?turn\|?>|\[/?[A-Z_]{4,}\]")  # noqa: RUF001


def tokenizer_of(shape: Shape) -> PreTrainedTokenizerBase:
    """A tokenizer of characters that has the control tokens of a template."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{chr(i): i for i in range(1, 128)}}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    control = sorted({*_CONTROL.findall(shape.template), shape.eos, *([shape.bos] if shape.bos else [])})
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=shape.eos,
        bos_token=shape.bos,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[token for token in control if token not in (shape.eos, shape.bos)],
        chat_template=shape.template,
    )


Messages = list[dict[str, Any]]


class Talk(NamedTuple):
    """A prompt and an answer to it; every word that someone said stands once in all of it."""

    prompt: Messages
    answer: Messages
    tools: Messages | None = None


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "abcdefghi", "function": {"name": name, "arguments": arguments}}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _said(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def _result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "name": "lookup", "tool_call_id": "abcdefghi"}


_CALL = _call("lookup", town="Oslo", days=3)
_TEXT_CALL = {**_CALL, "function": {"name": "lookup", "arguments": '{"town": "Oslo", "days": 3}'}}
_OTHER_CALL = _call("convert", unit="kelvin")
_SYSTEM = {"role": "system", "content": "Keep it short."}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} something",
            "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in keys}},
        },
    }
    for name, keys in (("lookup", ("town", "days")), ("convert", ("unit",)))
]

TALKS = {
    "plain": Talk([_user("Name a fruit.")], [_said("Apple, say.")]),
    "system": Talk([_SYSTEM, _user("Name a fruit.")], [_said("Apple, say.")]),
    "several_turns": Talk([_user("Name a fruit."), _said("Apple, say."), _user("Another?")], [_said("Quince, then.")]),
    "system_and_several_turns": Talk(
        [_SYSTEM, _user("Name a fruit."), _said("Apple, say."), _user("Another?")], [_said("Quince, then.")]
    ),
    "user_in_answer": Talk([_user("Name a fruit.")], [_said("Apple, say."), _user("Another?"), _said("Quince, then.")]),
    "spaces_around": Talk([_user("  Name a fruit.\n")], [_said("\n\nApple, say. ")]),
    "call": Talk([_user("How warm?")], [_said("", tool_calls=[_CALL])], _TOOLS),
    "call_with_text": Talk([_user("How warm?")], [_said("Checking.", tool_calls=[_CALL])], _TOOLS),
    "two_calls": Talk([_user("How warm?")], [_said("", tool_calls=[_CALL, _OTHER_CALL])], _TOOLS),
    "null_content": Talk([_user("How warm?")], [_said(None, tool_calls=[_CALL])], _TOOLS),
    "arguments_as_text": Talk([_user("How warm?")], [_said("", tool_calls=[_TEXT_CALL])], _TOOLS),
    "no_calls": Talk([_user("Name a fruit.")], [_said("Apple, say.", tool_calls=[])]),
    "result_in_answer": Talk(
        [_user("How warm?")],
        [_said("", tool_calls=[_CALL]), _result('72F "sunny"'), _said("It is warm.")],
        _TOOLS,
    ),
    "result_in_prompt": Talk(
        [_user("How warm?"), _said("", tool_calls=[_CALL]), _result("72F")], [_said("It is warm.")], _TOOLS
    ),
    "text_arguments_in_prompt": Talk(
        [_user("How warm?"), _said("", tool_calls=[_TEXT_CALL]), _result("72F")], [_said("It is warm.")], _TOOLS
    ),
    "reasoning_field": Talk([_user("Name a fruit.")], [_said("Apple, say.", reasoning_content="Think of trees.")]),
    "thinking_in_tags": Talk([_user("Name a fruit.")], [_said("<think>\nThink of trees.\n</think>\n\nApple, say.")]),
    "earlier_thinking": Talk(
        [_user("Name a fruit."), _said("<think>\nThink of trees.\n</think>\n\nApple, say."), _user("Another?")],
        [_said("Quince, then.")],
    ),
    "earlier_reasoning_field": Talk(
        [_user("Name a fruit."), _said("Apple, say.", reasoning_content="Think of trees."), _user("Another?")],
        [_said("Quince, then.")],
    ),
    "developer": Talk([{"role": "developer", "content": "Keep it short."}, _user("Name a fruit.")], [_said("Apple.")]),
    "function_result": Talk(
        [_user("How warm?"), {"role": "function", "name": "lookup", "content": "72F"}], [_said("It is warm.")]
    ),
    "two_systems": Talk(
        [_SYSTEM, {"role": "system", "content": "In French."}, _user("Name a fruit.")], [_said("Pomme.")]
    ),
    "empty_turn": Talk([_user("Name a fruit."), _said(""), _user("Another?")], [_said("Quince, then.")]),
    "open_turn": Talk([_user("Name a fruit."), _said("Apple,")], [_said(" say.")]),
    "answer_twice": Talk([_user("Name a fruit.")], [_said("Apple, say."), _said("Quince, then.")]),
    "template_words": Talk([_user("What does user mean?")], [_said("An assistant or a system.")]),
}
