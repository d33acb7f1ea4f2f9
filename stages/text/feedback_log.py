"""A log read as feedback: where it stands, what its columns are called, how its votes are written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from stages.text.duplicates import Ballots, ballot_of
from stages.text.layouts import Column, Feedback, Layout, read_feedback
from stages.text.log_files import MAX_ROW_BYTES, LogFile, LoggedRow, read_log
from stages.text.reasons import RejectedRowError
from stages.text.votes import is_minus_one, is_zero


@dataclass(frozen=True)
class FeedbackLog:
    """The files of a log and how to read their rows; can be gone through more than once."""

    files: Sequence[LogFile]
    """Files, in order."""
    columns: Mapping[Column, str]
    """By our name of a column, the log's name for it, where they differ."""
    layout: Layout | None = None
    """What every row is; None reads it off its columns."""
    label_threshold: float | None = None
    """Smallest rating that counts as desired; None where votes are no ratings."""
    ignored_labels: Sequence[float | str] = ()
    """Votes that say neither desired nor undesired."""
    max_row_bytes: int = MAX_ROW_BYTES
    """Longest row that is read."""

    def rows(self, *, progress: str) -> Iterator[tuple[LoggedRow, Feedback | RejectedRowError]]:
        """Each row as logged, with the feedback that it holds or why it holds none.

        Args:
            progress: name to show beside the progress bar.

        Raises:
            ValueError: a file is of an unknown kind or damaged.
        """
        rows = read_log(self.files, max_row_bytes=self.max_row_bytes)
        for logged in tqdm(rows, desc=progress, unit="row", mininterval=1.0):
            yield logged, self._feedback(logged)

    def count_votes(self) -> Ballots:
        """The votes of all rows, by what they are about.

        Raises:
            ValueError: a file is of an unknown kind or damaged, or the votes can be read in two ways.
        """
        ballots = Ballots()
        name = self.columns.get("label", "label")
        has_zero = has_minus_one = False
        for index, (logged, feedback) in enumerate(self.rows(progress="counting votes")):
            if isinstance(feedback, RejectedRowError) or logged.row is None:
                continue
            ballots.add(index, ballot_of(feedback))
            if feedback.layout == "unpaired":
                has_zero |= is_zero(logged.row.get(name))
                has_minus_one |= is_minus_one(logged.row.get(name))
        if has_zero and has_minus_one and self.label_threshold is None:
            raise ValueError(
                f"the column {name} holds both 0 and -1, so that 0 may mean undesired or no vote; set "
                "normalization.label_threshold: 1 if it means undesired, and ignored_labels: [0] if it means no vote"
            )
        return ballots

    def _feedback(self, logged: LoggedRow) -> Feedback | RejectedRowError:
        if logged.row is None:
            return logged.error or RejectedRowError("json_invalid", "expected a row, found none")
        try:
            return read_feedback(
                logged.row,
                columns=self.columns,
                layout=self.layout,
                label_threshold=self.label_threshold,
                ignored_labels=self.ignored_labels,
            )
        except RejectedRowError as error:
            return error
