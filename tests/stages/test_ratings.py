"""Ratings as forms and stores write them: read with the scale said, or stopped with the setting that decides."""

import pytest

STARS = [1, 5, 2, 4, 3, 5, 1, 2, 4, 5]


def rated(write, column="rating"):
    return [
        {"prompt": f"Which bird is number {i} of the list?", "completion": f"Bird {i}.", column: write(stars)}
        for i, stars in enumerate(STARS)
    ]


WAYS = {
    "words": lambda stars: f"{stars} star{'s' * (stars > 1)}",
    "glyphs": lambda stars: "\N{BLACK STAR}" * stars + "\N{WHITE STAR}" * (5 - stars),
    "fractions": lambda stars: f"{stars}/5",
    "decimal commas": lambda stars: f"{stars},0",
    "steps": lambda stars: f"{stars} - {['bad', 'poor', 'fair', 'good', 'very good'][stars - 1]}",
    "lists": lambda stars: [stars],
}


@pytest.mark.parametrize("way", WAYS)
def test_ratings_are_numbers_however_they_are_written(reads, way):
    rows = rated(WAYS[way])

    found = reads(rows, label_threshold=4)

    assert list(found.votes().values()) == [stars >= 4 for stars in STARS]
    assert [event["rating"] for event in found.events] == STARS
    with pytest.raises(ValueError, match="label_threshold"):
        reads(rows)
    with pytest.raises(ValueError, match="label_threshold"):
        reads(rows, columns={"label": "rating"})
    # Under a name that says nothing they make no demonstrations.
    with pytest.raises(ValueError, match="how_was_it may be a vote"):
        reads(rated(WAYS[way], "how_was_it"))


def test_the_scale_of_ratings_is_said(reads):
    found = reads(rated(lambda stars: f"{stars} out of 5"), label_threshold=4)

    assert "rating holds ratings of 5, read as numbers" in found.counts["understood"]


def test_per_cent_takes_a_threshold_in_per_cent(reads):
    rows = rated(lambda stars: f"{20 * stars} %")

    assert list(reads(rows, label_threshold=80).votes().values()) == [stars >= 4 for stars in STARS]
    with pytest.raises(ValueError, match="label_threshold: 80"):
        reads(rows, label_threshold=0.8)


@pytest.mark.parametrize("other", ["8/10", "80 %", 8])
def test_ratings_on_several_scales_stop(reads, other):
    rows = rated(lambda stars: other if stars == 4 else f"{stars}/5")

    with pytest.raises(ValueError, match="on several scales"):
        reads(rows, label_threshold=4)
    found = reads(rows, label_threshold=4, label_words={str(other): "desired"})
    assert list(found.votes().values()) == [stars >= 4 for stars in STARS]


def test_words_of_a_scale_are_known_in_any_case(reads):
    rows = rated(lambda stars: "Very good" if stars > 3 else "So so")

    found = reads(rows, columns={"label": "rating"}, label_words={"VERY GOOD": "desired", "so so": "undesired"})

    assert list(found.votes().values()) == [stars > 3 for stars in STARS]
