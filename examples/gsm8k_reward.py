"""An example of a reward that checks: whether the answer to a problem of GSM8K is right.

Name it in params.yaml as `reward: examples.gsm8k_reward:answer_reward`, with a log of prompts whose column `answer`
holds the solution as the data set has it, its last line "#### 18". The data is described in Cobbe et al. 2021,
https://arxiv.org/abs/2110.14168.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_MARKED = re.compile(r"(?:####|\bA:|\banswer is:?)\s*([^\n]*)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


def answer_reward(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
    """1 if the final number of a completion is that of the row's solution, else 0.

    Args:
        prompt: the problem.
        completion: what the policy says.
        row: the log's other columns, `answer` among them.

    Raises:
        ValueError: the row has no solution with a number.
    """
    right = final_number(str(row.get("answer", "")))
    if right is None:
        raise ValueError(
            f"expected a column answer that ends in a number, found {row.get('answer')!r} for {prompt[:80]!r}"
        )
    return float(final_number(completion) == right)


def final_number(text: str) -> Decimal | None:
    """The number that a solution ends in: behind the last "####", "A:" or "answer is", else the last of the text.

    Thousands separators, a currency sign and zeros behind the point don't matter.
    """
    marked = _MARKED.findall(text)
    numbers = _NUMBER.findall(marked[-1]) if marked else []
    # Behind a mark the first number is the answer ("#### 18 eggs in 2 days"), without one the last is.
    found = numbers[0] if numbers else next(reversed(_NUMBER.findall(text)), None)
    return None if found is None else Decimal(found.replace(",", "").replace("$", ""))
