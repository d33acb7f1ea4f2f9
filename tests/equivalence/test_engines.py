"""The stages that map rows write the same bytes from every engine."""

import pytest

from stages.contracts.files import files_below, tree_digest
from stages.prompt_embedding import PromptEmbeddingParams
from stages.prompt_embedding import run as embed
from stages.reference_logprobs import ReferenceLogprobsParams
from stages.reference_logprobs import run as score
from stages.tokenization import TokenizationParams
from stages.tokenization import run as tokenize
from tests.models.models_on_disk import write_model
from tests.stages.feedback import write_completions

ROWS = [{"prompt": f"Say {'hello ' * (i % 9)}{i}.", "completion": "hello" * (1 + i % 7)} for i in range(60)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    return write_completions(folder / "completions", ROWS), folder / "model"


def run_all(folder, completions, model):
    """Digest of each artifact that the stages write."""
    memo = {name: folder / "memo" / name for name in ("tokenization", "prompt_embedding", "reference_logprobs")}
    tokens = folder / "tokens"
    tokenize(
        completions=completions,
        base_model=model,
        tokens=tokens,
        rejects=folder / "rejects",
        metrics=folder / "metrics.json",
        memo=memo["tokenization"],
        params=TokenizationParams(),
    )
    embed(
        completions=completions,
        base_model=model,
        prompt_embeddings=folder / "prompt_embeddings",
        memo=memo["prompt_embedding"],
        params=PromptEmbeddingParams(batch_size=1),
    )
    score(
        tokens=tokens,
        base_model=model,
        reference_logps=folder / "reference_logps",
        memo=memo["reference_logprobs"],
        params=ReferenceLogprobsParams(batch_size=1, token_level=True),
    )
    return {name: tree_digest(folder / name) for name in ("tokens", "prompt_embeddings", "reference_logps")}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_every_engine_writes_the_same_bytes(inputs, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PLUMBLINE_PROCESSES", "2")
    # Models are loaded where they run: in the folder that the stage runs in.
    monkeypatch.chdir(inputs[1].parent)
    found = {}
    for name in ("inline", engine):
        monkeypatch.setenv("PLUMBLINE_ENGINE", name)
        found[name] = run_all(tmp_path / name, inputs[0], inputs[1].relative_to(inputs[1].parent))

    assert found[engine] == found["inline"]
    # 60 rows in pieces of 16: each piece was kept by itself.
    assert len([file for file in files_below(tmp_path / engine / "memo") if "logprobs" in str(file)]) == 4
    if engine == "ray":
        import ray

        ray.shutdown()
