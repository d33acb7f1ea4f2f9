"""Where a log lies: files on this machine, behind an fsspec URL, or in a data set of the Hugging Face hub."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import fsspec

from stages.contracts.files import files_below
from stages.text.log_files import LogFile, is_log, known_suffixes

_HUB = re.compile(
    r"hf:(?P<repository>[\w.-]+(/[\w.-]+)?)(/(?P<subset>[\w.-]+))?@(?P<revision>[^:@\s]+)(:(?P<split>[^:\s]+))?"
)


class Log(NamedTuple):
    """The files of a log, and those beside them that aren't read."""

    files: list[LogFile]
    unread: dict[str, str]
    """By the name of a file, why it isn't read."""


class HubSource(NamedTuple):
    """A split of a data set of the hub, at one revision."""

    repository: str
    subset: str | None
    revision: str
    split: str


@contextmanager
def open_log(feedback: Path, source: str | None) -> Iterator[Log]:
    """The files of a log; those that are fetched are removed afterwards.

    Args:
        feedback: file or folder that DVC watches.
        source: None reads all of `feedback`. Otherwise a pattern of files below it ("2025/*.jsonl"), an fsspec URL
            ("s3://bucket/log/*.parquet"), or "hf:org/name[/subset]@revision[:split]".

    Raises:
        ValueError: nothing is there, nothing of a known kind, or the source can't be understood or reached.
    """
    if source is None:
        yield _local_files(feedback)
    elif source.startswith("hf:") and not source.startswith("hf://"):
        with tempfile.TemporaryDirectory() as folder:
            yield Log(_hub_files(parse_hub_source(source), Path(folder)), {})
    elif "://" in source:
        with tempfile.TemporaryDirectory() as folder:
            yield _fetched_files(source, Path(folder))
    else:
        yield _matching_files(feedback, source)


def parse_hub_source(source: str) -> HubSource:
    """Read "hf:org/name[/subset]@revision[:split]".

    Raises:
        ValueError: it is written otherwise, for example without a revision.
    """
    match = _HUB.fullmatch(source)
    if match is None:
        raise ValueError(
            f"expected hf:org/name@revision or hf:org/name@revision:split, found {source!r}; the revision is needed "
            "because a data set's main branch moves, so name one of its commits"
        )
    return HubSource(match["repository"], match["subset"], match["revision"], match["split"] or "train")


def _local_files(feedback: Path) -> Log:
    if not feedback.exists():
        raise ValueError(f"expected feedback at {feedback}, found nothing; name your log in params.yaml under inputs")
    if feedback.is_file():
        return Log([LogFile(feedback, feedback.name)], {})
    below = [(file, file.relative_to(feedback).as_posix()) for file in files_below(feedback)]
    files, unread = [], {}
    for path, name in below:
        if any(part[0] in "._" for part in name.split("/")):
            unread[name] = "its name begins with a dot or underscore"
        elif is_log(path):
            files.append(LogFile(path, name))
        else:
            unread[name] = f"of no known kind ({known_suffixes()})"
    if not files:
        raise ValueError(f"{feedback}: expected a file of a known kind ({known_suffixes()}), found none")
    return Log(files, unread)


def _matching_files(feedback: Path, pattern: str) -> Log:
    if not feedback.is_dir():
        raise ValueError(
            f"expected a folder at {feedback} to look for {pattern} in, found none; source: null reads a file"
        )
    if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
        raise ValueError(f"expected a pattern of files below {feedback}, which DVC watches, found {pattern}")
    files = sorted(file for file in feedback.glob(pattern) if file.is_file())
    if not files:
        raise ValueError(f"expected files like {pattern} below {feedback}, found none")
    found = [LogFile(file, file.relative_to(feedback).as_posix()) for file in files]
    names = {file.name for file in found}
    others = [file.relative_to(feedback).as_posix() for file in files_below(feedback)]
    return Log(found, {name: f"not like {pattern}" for name in others if name not in names})


def _fetched_files(url: str, folder: Path) -> Log:
    unread: dict[str, str] = {}
    try:
        system, path = fsspec.core.url_to_fs(url)
        if any(sign in path for sign in "*?["):
            found = sorted(system.glob(path))
        elif system.isdir(path):
            below = sorted(system.find(path))
            found = [name for name in below if is_log(Path(name))]
            unread = {PurePosixPath(name).name: "of no known kind" for name in below if not is_log(Path(name))}
        else:
            found = [path]
        files = []
        for i, name in enumerate(found):
            local = folder / f"{i:06d}-{PurePosixPath(name).name}"
            system.get_file(name, str(local))
            files.append(LogFile(local, PurePosixPath(name).name))
    except (OSError, ImportError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"expected feedback at {url}, but it can't be read: {message}") from None
    if not files:
        raise ValueError(f"expected feedback at {url}, found no files there")
    return Log(files, unread)


def _hub_files(source: HubSource, folder: Path) -> list[LogFile]:
    # Slow to import, and only logs on the hub need it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        data = load_dataset(source.repository, source.subset, revision=source.revision, split=source.split)
    except (DatasetsError, OSError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"expected the data set {source.repository}@{source.revision}: {message}") from None
    path = folder / "rows.parquet"
    data.to_parquet(str(path))
    return [LogFile(path, f"{source.repository}@{source.revision}:{source.split}")]
