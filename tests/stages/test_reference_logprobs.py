"""Stage `reference_logprobs`: the right values, once, the same bits whatever stands beside a row."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.contracts.artifact import ContractError, read_table
from stages.contracts.files import tree_digest
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.tokens import TOKENS
from stages.models import row_logps as row_logps_module
from stages.reference_logprobs import ReferenceLogprobsParams, run
from tests.models.tiny import tiny_model
from tests.stages.feedback import write_tokens


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")


@pytest.fixture
def computed(monkeypatch):
    """Sequences that the model was asked about, in order."""
    seen: list[tuple[int, ...]] = []
    real = row_logps_module.row_logps

    def counting(model, sequences, prompt_lengths, **options):
        seen.extend(tuple(sequence) for sequence in sequences)
        return real(model, sequences, prompt_lengths, **options)

    monkeypatch.setattr(row_logps_module, "row_logps", counting)
    return seen


def random_rows(count, *, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        length = int(random.integers(2, 50))
        ids = random.integers(3, 97, size=length).tolist()
        rows.append(
            {"row_id": f"{seed}-{index}", "input_ids": ids, "prompt_length": int(random.integers(1, length + 1))}
        )
    return rows


def compute(folder, rows, base_model, *, memo=None, **params):
    tokens = write_tokens(folder / "tokens", rows)
    run(
        tokens=tokens,
        base_model=base_model,
        reference_logps=folder / "reference_logps",
        memo=memo or folder / "memo",
        params=ReferenceLogprobsParams(batch_size=4, **params),
    )
    return read_table(folder / "reference_logps", REFERENCE_LOGPS)


def test_values_are_those_of_a_plain_log_softmax(tmp_path, base_model):
    rows, model = random_rows(20), tiny_model("llama")

    table = compute(tmp_path, rows, base_model, token_level=True)

    assert table["row_id"].to_pylist() == [row["row_id"] for row in rows]
    for row, logps, num_tokens, token_logps in zip(
        rows, *(table[c].to_pylist() for c in table.column_names[1:]), strict=True
    ):
        ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
        with torch.no_grad():
            scores = model(ids).logits[0].log_softmax(-1)
        expected = [scores[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])]
        assert num_tokens == len(expected)
        assert token_logps == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert logps == pytest.approx(sum(expected), rel=1e-5, abs=1e-5)


def test_token_values_are_left_out_unless_asked_for(tmp_path, base_model):
    table = compute(tmp_path, random_rows(3), base_model)

    assert table["token_logps"].null_count == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_whatever_its_neighbours(tmp_path, base_model, dtype):
    rows = random_rows(30)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    together = compute(tmp_path / "one", rows, base_model, dtype=dtype)["logps"].to_pylist()

    apart = compute(tmp_path / "two", [*random_rows(9, seed=1), *reversed(rows[:7])], base_model, dtype=dtype)

    assert apart["logps"].to_pylist()[9:] == together[:7][::-1]


def test_only_rows_that_are_new_are_computed_and_the_bytes_are_those_from_scratch(tmp_path, base_model, computed):
    rows, new = random_rows(20), random_rows(3, seed=1)
    (tmp_path / "scratch").mkdir()
    compute(tmp_path, rows, base_model)
    computed.clear()

    compute(tmp_path, [*rows[:10], new[0], *rows[10:], *new[1:]], base_model)

    assert sorted(computed) == sorted(tuple(row["input_ids"]) for row in new)
    compute(tmp_path / "scratch", [*rows[:10], new[0], *rows[10:], *new[1:]], base_model)
    assert tree_digest(tmp_path / "reference_logps") == tree_digest(tmp_path / "scratch" / "reference_logps")


def test_labels_and_weights_are_no_reason_to_compute_again(tmp_path, base_model, computed):
    rows = random_rows(5)
    compute(tmp_path, rows, base_model)
    computed.clear()

    compute(tmp_path, [{**row, "label": False, "weight": 2.0} for row in rows], base_model)

    assert computed == []


def test_another_model_or_precision_computes_all_rows_again(tmp_path, base_model, computed):
    rows = random_rows(5)
    other = tmp_path / "other"
    tiny_model("qwen2_tied").save_pretrained(other)
    compute(tmp_path, rows, base_model)

    compute(tmp_path, rows, base_model, dtype="bfloat16")
    compute(tmp_path, rows, other)

    assert len(computed) == 15


def test_bfloat16_is_near_float32(tmp_path, base_model):
    rows = random_rows(10)
    exact = compute(tmp_path, rows, base_model)["logps"].to_numpy()

    near = compute(tmp_path, rows, base_model, dtype="bfloat16")["logps"].to_numpy()

    assert not np.array_equal(near, exact)
    np.testing.assert_allclose(near, exact, rtol=0.02, atol=0.3)


def test_a_model_that_gives_no_numbers_is_refused_and_nothing_is_written(tmp_path):
    model = tiny_model("llama")
    rows = [{"row_id": f"r{index}", "input_ids": [4, 5, 6 + index], "prompt_length": 1} for index in range(4)]
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    model.save_pretrained(tmp_path / "model")

    with pytest.raises(ValueError, match="gives 4 of 4 rows no finite log-probability, the first r0"):
        compute(tmp_path, rows, tmp_path / "model")

    assert not (tmp_path / "reference_logps").exists()


def test_no_rows_give_an_artifact_without_rows(tmp_path, base_model):
    assert compute(tmp_path, [], base_model).num_rows == 0


def test_tokens_of_another_kind_are_refused(tmp_path, base_model):
    run_arguments = {"base_model": base_model, "reference_logps": tmp_path / "out", "memo": tmp_path / "memo"}

    with pytest.raises(ContractError, match=f"expected {TOKENS.kind}"):
        run(tokens=tmp_path / "nothing", params=ReferenceLogprobsParams(), **run_arguments)


def test_a_completion_without_prompt_counts_from_its_second_token():
    result = row_logps_module.row_logps(tiny_model("llama"), [[5, 6, 7]], [0], batch_size=1)

    assert result.num_tokens.tolist() == [2]
    assert len(result.token_logps[0]) == 2
    assert pa.array(result.logps).type == pa.float32()
