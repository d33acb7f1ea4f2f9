"""How many prompts of the rarer label a diagnosis of their shift needs, in simulated worlds with a known cause.

    python -m benchmarks.undesired_prompts

Each world has eight topics with equally many prompts, 2,000 in all, one vote on each. Topics differ in how often they
are voted down, by log-odds from -s to s (--spread) around a level that leaves so many thumbs down as the row says.
Where the model is at fault, the reference finds answers to such topics less likely, in their order; where the raters
are, its confidence has nothing to do with it. The diagnosis is given a shift that is there (AUC 0.8) and its default
thresholds. Printed are the shares of worlds in which it names the right cause, the wrong one, and none.
"""

import argparse

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from stages.measures.intervals import Interval
from stages.shift_diagnosis import ShiftDiagnosisParams
from stages.udm.cause import Thresholds, diagnose, group_rows, rank_correlation

NUM_TOPICS, NUM_ROWS = 8, 2000
NUMBERS = (5, 10, 20, 30, 50, 75, 100, 150, 200, 400)
SHIFT = Interval(0.8, 0.75, 0.85)


def world(num_undesired, *, spread, is_competence, random):
    """Topic, label and log-probability per token of each row."""
    odds = np.linspace(-spread, spread, NUM_TOPICS)
    level = brentq(lambda x: expit(odds + x).mean() * NUM_ROWS - num_undesired, -20, 20)
    down = expit(odds + level)
    topics = np.arange(NUM_ROWS) % NUM_TOPICS
    labels = random.random(NUM_ROWS) >= down[topics]
    # As unlike as confidences of 0.1 and 0.9 where the model is at fault; where it isn't, in any order.
    confidence = np.linspace(0.9, 0.1, NUM_TOPICS)
    confidence = confidence if is_competence else random.permutation(confidence)
    return topics, labels, np.log(confidence[topics]) + random.normal(size=NUM_ROWS) * 0.2


def verdict(num_undesired, *, spread, is_competence, seed):
    """What the diagnosis says, however few prompts there are."""
    params = ShiftDiagnosisParams()
    topics, labels, logps = world(
        num_undesired, spread=spread, is_competence=is_competence, random=np.random.default_rng(seed)
    )
    names = [f"topic {topic}" for topic in topics]
    groups = group_rows(names, labels, logps, min_rows=params.min_group_rows)
    correlation = rank_correlation(groups, names, labels, logps, np.arange(NUM_ROWS), num_resamples=200, seed=seed)
    thresholds = Thresholds(
        competence=params.competence_correlation,
        rater_bias=params.rater_bias_correlation,
        min_auc=params.min_auc,
        min_groups=params.min_groups,
        min_effective_share=params.min_effective_share,
        min_prompts=0,
    )
    return diagnose(
        auc=SHIFT,
        effective_share=1.0,
        correlation=correlation,
        num_groups=len(groups),
        num_prompts=num_undesired,
        thresholds=thresholds,
    ).verdict


def shares(num_undesired, *, spread, is_competence, num_worlds):
    """Shares of worlds in which the right cause, the wrong one and none is named."""
    found = [
        verdict(num_undesired, spread=spread, is_competence=is_competence, seed=seed) for seed in range(num_worlds)
    ]
    right, wrong = ("competence", "rater_bias") if is_competence else ("rater_bias", "competence")
    return [found.count(name) / num_worlds for name in (right, wrong, "unsure")]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=200, help="worlds of each cause and number")
    parser.add_argument("--spread", type=float, default=2.2, help="of the topics' log-odds")
    args = parser.parse_args()
    print("| prompts voted down | model at fault: right | wrong | unsure | raters: right | wrong | unsure |")
    print("|---|---|---|---|---|---|---|")
    for number in NUMBERS:
        both = [
            shares(number, spread=args.spread, is_competence=fault, num_worlds=args.worlds) for fault in (True, False)
        ]
        cells = [f"{share:.1%}" for side in both for share in side]
        print(f"| {number} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
