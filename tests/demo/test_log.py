"""The demo's log: what it is made of, and its dirt."""

import json

import numpy as np

from stages.demo.log import DIRT, draw_demonstrations, draw_log, spoil
from stages.demo.world import make_world

WORLD = make_world("rater_bias", seed=0)


def rows(count, **settings):
    settings = {"label_noise": 0.0, **settings}
    return list(draw_log(WORLD, rows=count, rng=np.random.default_rng(0), **settings))


def test_harsher_topics_get_fewer_thumbs_up():
    log = rows(3000)

    shares = {}
    for name in WORLD:
        shares[name] = np.mean([row["label"] == "up" for row in log if row["topic"] == name])
    by_bias = sorted(WORLD, key=lambda name: WORLD[name].rater_bias)
    assert shares[by_bias[0]] < 0.2
    assert 0.3 < shares[by_bias[3]] < 0.6
    assert shares[by_bias[-1]] > 0.8


def test_votes_that_nobody_gave_are_not_in_the_log():
    world = {name: traits._replace(pleased_vote=0.0) for name, traits in WORLD.items()}

    log = list(draw_log(world, rows=100, label_noise=0.0, rng=np.random.default_rng(0)))

    assert [row["label"] for row in log] == ["down"] * 100


def test_prompts_are_repeated_and_time_goes_on():
    log = rows(1000)

    assert len({row["prompt"][0]["content"] for row in log}) < 950
    times = [row["time"] for row in log]
    assert times == sorted(times)
    assert times[0].endswith("Z")


def test_noise_turns_about_its_share_of_votes():
    # The same draws are made with and without noise, so that the votes can be compared row by row.
    pairs = zip(rows(2000), rows(2000, label_noise=0.1), strict=True)

    assert 0.07 < np.mean([clean["label"] != noisy["label"] for clean, noisy in pairs]) < 0.13


def test_demonstrations_have_no_vote():
    found = list(draw_demonstrations(WORLD, rows=3, rng=np.random.default_rng(0)))

    assert [set(row) for row in found] == [{"prompt", "completion"}] * 3


def test_dirt_is_added_and_counted_and_no_good_row_is_lost():
    log = rows(50)

    lines, added = spoil(log, dirty_rows=20, rng=np.random.default_rng(0))

    assert len(lines) == 70
    assert sum(added.values()) == 20
    assert set(added) == set(DIRT)
    assert min(added.values()) == 3
    kept = iter(lines)
    assert all(any(line == json.dumps(row, ensure_ascii=False) for line in kept) for row in log)


def test_each_kind_of_dirt_is_what_its_name_says():
    row = rows(1)[0]
    lines = {kind: spoiled(row) for kind, spoiled in DIRT.items()}

    assert json.loads(lines["empty_completion"])["completion"][0]["content"] == ""
    assert json.loads(lines["unknown_label"])["label"] == "maybe"
    assert not lines["truncated_line"].endswith("}")
    assert not isinstance(json.loads(lines["no_object"]), dict)
    assert json.loads(lines["duplicate"]) == row
    contradiction = json.loads(lines["contradiction"])
    assert contradiction["completion"] == row["completion"]
    assert {contradiction["label"], row["label"]} == {"up", "down"}


def test_an_empty_log_stays_empty():
    assert spoil([], dirty_rows=5, rng=np.random.default_rng(0)) == ([], dict.fromkeys(DIRT, 0))
