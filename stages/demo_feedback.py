"""Stage `demo_feedback`: write the demo's feedback log from a simulated world.

The log stands for one of your own. The demonstrations are what the demo's base model learns from, and the truth is
what its answers are judged by; only `evaluation` reads it.
"""

from pydantic import Field

from stages.contracts.files import write_json, write_text
from stages.contracts.stage import Output, Section, stage_main
from stages.demo.world import Voters, WorldName


class DemoFeedbackParams(Section):
    """Section `demo_feedback` of params.yaml."""

    world: WorldName = "rater_bias"
    """Why thumbs-up and thumbs-down prompts differ: people judge some topics more harshly (`rater_bias`), or the
    model is worse at some (`competence`)."""
    voters: Voters = "all"
    """Who votes: everybody (`all`), or mainly the pleased on topics with many thumbs up and the annoyed on topics with
    few (`moved`), which widens the difference between the two kinds of prompts."""
    rows: int = Field(3000, gt=0)
    """Votes in the log."""
    demonstrations: int = Field(16000, gt=0)
    """Answers, as good as those in the log, that the base model learns from."""
    label_noise: float = Field(0.02, ge=0, lt=0.5)
    """Share of votes that say the opposite of what the voter meant."""
    dirty_rows: int = Field(60, ge=0)
    """Lines added to the log that normalization must refuse or merge."""
    seed: int = Field(0, ge=0)
    """Seed of the world and of all that is drawn in it."""


def run(*, feedback: Output, demonstrations: Output, truth: Output, params: DemoFeedbackParams) -> None:
    """Draw a world and write what people said in it.

    Args:
        feedback: JSONL to write: conversational prompt and completion, label "up" or "down", topic, user and time.
        demonstrations: JSONL to write: conversational prompt and completion.
        truth: JSON to write: the rules by which an answer is right, and the traits of each topic.
        params: which world, how much of it, and the seed.
    """
    import numpy as np

    from stages.demo.log import draw_demonstrations, draw_log, spoil, to_line
    from stages.demo.world import describe_truth, make_world

    # One stream for each of the outputs: a change to the size of one leaves the others as they were.
    log_rng, dirt_rng, demonstration_rng = (np.random.default_rng([params.seed, stream]) for stream in (1, 2, 3))
    world = make_world(params.world, voters=params.voters, seed=params.seed)
    rows = list(draw_log(world, rows=params.rows, label_noise=params.label_noise, rng=log_rng))
    lines, added = spoil(rows, dirty_rows=params.dirty_rows, rng=dirt_rng)
    demonstrated = draw_demonstrations(world, rows=params.demonstrations, rng=demonstration_rng)

    write_text(feedback, "".join(f"{line}\n" for line in lines))
    write_text(demonstrations, "".join(f"{to_line(row)}\n" for row in demonstrated))
    description = describe_truth(params.world, world)
    write_json(truth, {**description, "label_noise": params.label_noise, "dirt": added, "seed": params.seed})
    share_up = sum(row["label"] == "up" for row in rows) / len(rows)
    print(f"{len(lines)} lines, {sum(added.values())} of them dirty; {share_up:.0%} thumbs up; world {params.world}")


if __name__ == "__main__":
    stage_main(run)
