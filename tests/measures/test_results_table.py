"""The table that a run ends with."""

from stages.measures.results_table import results_table

COUNTS = {"counts": {"sampled_prompts": 2, "samples_per_prompt": 4, "rows": 7}}


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_shows_what_was_measured_and_leaves_out_the_rest():
    table = results_table(
        {
            **COUNTS,
            "true_reward": {"policy": interval(0.7), "reference": interval(0.5), "gain": interval(0.2)},
            "kl": interval(3.0),
        }
    )

    lines = table.splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["true", "reward", "0.500", "0.700", "0.600", "to", "0.800"],
        ["gain", "0.200", "0.100", "to", "0.300"],
        ["KL", "to", "the", "start,", "nats", "3.000", "2.900", "to", "3.100"],
    ]
    assert lines[-1] == "2 prompts, 4 samples of each; 7 labelled rows"
    assert len({len(line) for line in lines[:-1]}) == 1
