"""Stage `mismatched_rows`: each prompt of the training split with the completion of another row.

    dvc repro mismatched_rows

KTO compares rewards with the divergence of the policy from the reference, which it estimates from these rows. As a
table of their own, they get their log-probabilities under the reference like all others, once.
"""

from stages.contracts.artifact import read_table, write_table
from stages.contracts.stage import Input, Output, stage_main
from stages.contracts.tokens import TOKENS
from stages.rows.mismatched import mismatched_places, mismatched_rows


def run(*, tokens: Input, mismatched_tokens: Output) -> None:
    """Write the mismatched row of every labelled row of the training split.

    Args:
        tokens: `tokens` artifact.
        mismatched_tokens: `tokens` artifact to write, in the order of those rows.

    Raises:
        ContractError: `tokens` is missing or damaged.
        ValueError: all rows have the same prompt.
    """
    rows = read_table(tokens, TOKENS)
    found = mismatched_rows(rows, mismatched_places(rows))
    print(f"mismatched_rows: {found.num_rows:,} rows")
    write_table(mismatched_tokens, found, TOKENS)


if __name__ == "__main__":
    stage_main(run)
