"""What a chat template makes of one row: the prompt, what of the answer is learned, where it ends, and the checks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.text import Text

from stages.contracts.stage import read_params
from stages.models.pointer import POINTER_FILE
from stages.models.tokenizers import load_tokenizer, stop_tokens, tokenizer_alone
from stages.normalization import NormalizationParams, normal_form_of
from stages.text.layouts import read_feedback
from stages.text.reasons import RejectedRowError

BASE_MODEL = Path("models/base")
SAMPLE = {
    "prompt": [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "What is a plumb line?"},
        {"role": "assistant", "content": "A weight on a string."},
        {"role": "user", "content": "What is it for?"},
    ],
    "completion": [{"role": "assistant", "content": "It shows what is vertical."}],
}
_CHECKS = (
    "every text of every message stands there once, in order, on its side",
    "the prompt is what a server sends, to the byte",
    "only the assistant's own words are learned",
)

Role = Literal["prompt", "learned", "read"]
_STYLES: dict[Role, str] = {"prompt": "cyan", "learned": "bold green", "read": "dim"}
_TITLES: dict[Role, str] = {
    "prompt": "prompt, read",
    "learned": "answer, learned",
    "read": "between answers, read and not learned",
}


class Part(NamedTuple):
    """A stretch of a rendered row."""

    role: Role
    text: str


def describe_template(folder: Path | None, row: Path | None) -> int:
    """Print what a template makes of a row; gives 1 if the row would be rejected.

    Args:
        folder: any folder with a `tokenizer_config.json`, whose template is taken; None takes the base model's, or that
            of params.yaml.
        row: JSON file of one row as the log has it, or JSONL, of which the first is taken; None takes a sample.

    Raises:
        ValueError: there is no model, no template or no row.
    """
    console = Console(soft_wrap=True, highlight=False)
    params = NormalizationParams(**read_params("normalization")) if Path("params.yaml").is_file() else None
    params = params or NormalizationParams()
    where = folder or BASE_MODEL
    is_base = (where / POINTER_FILE).is_file()
    tokenizer = load_tokenizer(where) if is_base else tokenizer_alone(where)
    listed = stop_tokens(where, tokenizer)
    if folder is not None:
        # The folder's own template is what is asked about.
        params = params.model_copy(update={"chat_template": None})
    normal_form = normal_form_of(params, tokenizer, stop_tokens=listed)
    renderer = normal_form.renderer
    console.print(f"template of {where}, arguments {json.dumps(params.template_arguments)}", markup=False)
    try:
        parts = normal_form.settled(read_feedback(_first_row(row)))
        found = [made for part in parts for made in normal_form.rows(part)]
        # Behind the row, for a policy that learns an end from it is saved with that end.
        stops = list(dict.fromkeys([*listed, *filter(None, [tokenizer.eos_token]), *renderer.ends()]))
        console.print(f"generation stops at {', '.join(stops) or 'nothing'}", markup=False)
    except RejectedRowError as rejected:
        console.print(Text.assemble(("rejected, ", "bold red"), str(rejected)))
        return 1
    answers = [each for each in found if each["completion"] is not None]
    _print_rows(console, found)
    for sentence in renderer.sentences():
        console.print(Text.assemble(("note  ", "bold yellow"), sentence))
    for check in _CHECKS:
        console.print(Text.assemble(("ok  ", "bold green"), check))
    have_ended = [_print_end(console, answer["completion"], stops) for answer in answers if answer["is_complete"]]
    return 0 if all(have_ended) else 1


def parts_of(completion: str, spans: Sequence[int] | None) -> Iterator[Part]:
    """Stretches of a completion that the assistant said, as start, end, start, end, and what stands between them."""
    borders = [0, *((0, len(completion)) if spans is None else spans), len(completion)]
    for index, (start, end) in enumerate(pairwise(borders)):
        if start < end:
            yield Part("learned" if index % 2 else "read", completion[start:end])


def _print_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Each prompt, once for all answers to it, and each answer with what of it is learned and what that weighs."""
    shown = None
    for row in rows:
        if row["prompt"] != shown:
            _print(console, Part("prompt", row["prompt"]))
        shown = row["prompt"]
        for part in parts_of(row["completion"], row["spans"]) if row["completion"] is not None else ():
            _print(console, part)
        if row.get("span_weights") is not None:
            console.print(f"in the loss of SFT its answers weigh {', '.join(map(str, row['span_weights']))}")


def _print(console: Console, part: Part) -> None:
    console.print(_TITLES[part.role], style="bold")
    for line in part.text.split("\n"):
        console.print(Text.assemble(("| ", "dim"), (line, _STYLES[part.role])))


def _print_end(console: Console, completion: str, stops: Sequence[str]) -> bool:
    """Say whether a completion ends where generation stops, and whether it does."""
    end = next((stop for stop in stops if completion.endswith(stop)), None)
    if end is not None:
        console.print(Text.assemble(("ok  ", "bold green"), f"the answer ends with {end}, at which generation stops"))
        return True
    console.print(
        Text.assemble(
            ("no  ", "bold red"),
            f"the answer ends with {completion[-20:]!r}, and an EOS is put behind it, if the tokenizer has one",
        )
    )
    return False


def _first_row(file: Path | None) -> dict[str, Any]:
    if file is None:
        return SAMPLE
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text if file.suffix == ".json" else text.lstrip().split("\n", 1)[0])
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected a row as JSON, or JSON lines, found none: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected a row as a JSON object, found {type(found).__name__}; give one row alone")
    return found
