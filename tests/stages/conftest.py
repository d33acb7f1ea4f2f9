"""Fixtures that several tests of stages share."""

from collections.abc import Iterator

import pytest
import torch

from tests.stages.own_logs import read, write
from tests.text.tiny_tokenizers import chatml, save_as_model


@pytest.fixture
def single_thread() -> Iterator[None]:
    """One thread, as in the process that is killed: sums of other parts would have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A model that has a chat template."""
    return save_as_model(chatml(), tmp_path_factory.mktemp("chat"))


@pytest.fixture
def reads(tmp_path, chat_model):
    """Reads a log of rows, or of text as it stands in a file, as `own_logs.read` does."""

    def of(rows, name="log.jsonl", **params):
        return read(write(tmp_path / "log" / name, rows), chat_model, tmp_path / "read", **params)

    return of
