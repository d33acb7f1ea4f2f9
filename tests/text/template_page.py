"""The page docs/templates.md: what becomes of each kind of conversation under each shape of template.

python -m tests.text.template_page > docs/templates.md
"""

from collections import Counter

from tests.text.chat_templates import SHAPES, TALKS
from tests.text.test_template_matrix import outcome

_SIGNS = {
    "right": "yes",
    "text_not_rendered": "leaves out",
    "text_misplaced": "moves",
    "template_error": "refuses",
    "prompt_not_served": "other prompt",
}
_REASONS = {
    "text_not_rendered": (
        "leaves out a text: a role, a call, a thought",
        "name the role, log the call as `tool_calls` and the thought as `reasoning_content`, or give a template",
    ),
    "text_misplaced": (
        "changes, repeats or moves a text",
        "give a template that writes each text once, as it is, in order",
    ),
    "template_error": (
        "refuses the conversation",
        "change its turns, or give a template that takes them",
    ),
    "prompt_not_served": (
        "goes on otherwise than from the prompt that a server sends, as where that opens a thought",
        "log the thought, or set `template_arguments` as the server does, or `learned_turns: each`",
    ),
    "unclear_turns": (
        "doesn't show where a call inside a completion begins and ends",
        "log each answer as a row of its own",
    ),
}
_BEGIN = """# Chat templates

Prompt and completion of a row are made by the chat template of the model, or by `normalization.chat_template`. A row is
kept only if every text of every message stands in them once, in order, on its side; the prompt is what a server sends,
to the byte; and the completion ends with the token at which generation stops. Otherwise it is rejected with one of
these reasons, the message that went missing, and a way out:

"""
_EXPLANATION = """
What was said can be handed to a template in several shapes, which are tried in order, the log's own first: arguments of
calls as objects or as JSON text; no content beside calls as empty text, null or absent; thoughts in a field or, where
the template knows them, between tags; content as text or as parts. Where the template knows neither `developer` nor
`function`, they are named `system` and `tool`, and `roles_renamed` in the metrics counts these rows.

In a completion of several turns, `spans` of `completions` and `tokens` hold the assistant's own words: what users and
tools said between them is read, and no loss and no log-probability counts it. A prompt whose template forgets what the
assistant thought in earlier turns is rejected, unless `normalization.earlier_thoughts` is `as_served`. The template,
its arguments as defaults and its end of turn are saved with the policy.

Where a server's prompt always opens a thought and the template leaves thoughts out of answers, the completion is the
thought that the log has, or an empty one, closed as a model closes it, and the answer behind it (`thoughts_closed`).

Where the template takes a conversation in none of these shapes, `normalization.fold_system` lets a system text be said
in the user's first turn, and `join_turns` lets turns of the user in a row be one; whoever serves the model has to do
the same.

Which answers of a conversation are learned is a choice. `normalization.learned_turns: all` takes every answer of the
completion, `last` the last one, with the earlier turns in the prompt of what isn't a pair, and `conversation` every
answer of a demonstrated conversation from the first, while a vote goes on judging the last. `each` makes a row of every
answer of a demonstration. Templates of thinking models need that: they write an answer otherwise once another turn
follows it, with or without `enable_thinking: false`, so that only an answer in a row of its own stands behind the
prompt that a server sends at its turn.

A message with `weight: 0` isn't learned, by any method. Other weights of messages, and `normalization.turn_decay` (0.5
makes three answers weigh 0.25, 0.5 and 1), stand as `span_weights` in `completions` and
`tokens` and multiply the loss of an answer's tokens in SFT, whose mean goes over tokens whatever they weigh. The other
methods compare whole completions, whose log-probability has no such weights, and refuse them. Evaluations count all
answers alike.

Rows of messages that are handed to a trainer in Python go through the same checks; one that fails is an error before
training, with its row and message. They may have a column `chat_template_kwargs`, as in TRL, and nulls that a table
puts into their calls and tools are no part of those.

A token that would belong to two speakers, such as one of two line breaks around the start of an answer, is encoded as
two.

`python -m pipelines describe --template [FOLDER]` shows a row as the template of the base model has it, or that of any
folder with a `tokenizer_config.json`: the prompt, what of the answer is learned, where generation stops, and the
checks, or the reason of a reject. `--row FILE` takes the first row of a log of JSON lines in place of a sample.

## Shapes and kinds

Made by `python -m tests.text.template_page` from the templates and conversations of the tests; no cell is wrong.
"""


def page() -> str:
    """Text of the page."""
    found = {name: {kind: outcome(shape, talk) for kind, talk in TALKS.items()} for name, shape in SHAPES.items()}
    counts = Counter("right" if cell == "right" else "rejected" for row in found.values() for cell in row.values())
    head = ["kind", *(name.replace("_", " ") for name in SHAPES)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind in TALKS:
        cells = [_SIGNS.get(found[name][kind], found[name][kind]) for name in SHAPES]
        lines.append(f"| {' | '.join([kind.replace('_', ' '), *cells])} |")
    total = sum(counts.values())
    summary = f"Of {total} cells, {counts['right']} are right and {counts['rejected']} rejected."
    reasons = [f"| `{name}` | {what} | {advice} |" for name, (what, advice) in _REASONS.items()]
    table = "\n".join(["| reason | what the template does | way out |", "|---|---|---|", *reasons])
    return "\n".join([_BEGIN + table, _EXPLANATION, summary, "", *lines, ""])


if __name__ == "__main__":
    print(page(), end="")
