"""Values of one training parameter against each other in the demo's worlds, at equal settings and at equal KL.

    python -m benchmarks.compare_settings --vary training.bco.reward_shift=pooled,balanced --correction none
        --desired-shares 0.2 0.5 0.8 0.95 --set demo_feedback.rows=6000 --work .cache/demo_experiments

Each value is trained with each learning rate on each seed; world, base model and reference log-probabilities of a
seed are those of `demo_experiments` and shared. With --desired-shares the rows to train on are drawn from the
training split so that this share of --rows is desired, each label's rows at random; what is held out stays as it is.

A larger step brings more gain and more KL, so the second table compares at equal KL: along the learning rates of a
seed the gain is interpolated linearly over log KL, up to the learning rate at which KL is largest; a seed whose runs
don't reach the KL on both sides isn't counted. Intervals are Student's, of the mean over seeds; differences are from
the first value, seed by seed.
"""

import argparse
import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.demo_experiments import METRICS, WORLDS, Experiment, Params, changed, spread, value
from stages.contracts.artifact import read_table, write_table
from stages.contracts.files import write_json
from stages.contracts.reference_logps import REFERENCE_LOGPS
from stages.contracts.stage import PARAMS_FILE
from stages.contracts.tokens import TOKENS

GAIN, KL, ACCURACY = METRICS["gain on the start"], METRICS["KL"], ("accuracy",)


class SkewedExperiment(Experiment):
    """An experiment on a part of the training rows with a given share of desired ones.

    Args:
        share: share of desired rows; None takes all rows as they are.
        rows: number of rows to train on, with a share.
    """

    def __init__(self, work: Path, params: Params, *, world: str, seed: int, share: float | None, rows: int) -> None:
        super().__init__(work, params, world=world, seed=seed)
        self.whole = self.folder
        self.share, self.rows = share, rows

    def path(self, name: str) -> Path:
        """Where an artifact stands: that of the drawn rows if there is one."""
        drawn = self.folder / name
        return drawn if drawn.exists() or self.folder == self.whole else self.whole / name

    def prepare(self) -> None:
        """Make what the runs share, and draw the rows."""
        super().prepare()
        if self.share is None:
            return
        kept = self._drawn(self.share)
        self.folder = self.whole / f"desired-{self.share:g}-of-{self.rows}"
        self.folder.mkdir(exist_ok=True)
        for name, contract in (("tokens", TOKENS), ("reference_logps", REFERENCE_LOGPS)):
            if not (self.folder / name).exists():
                write_table(self.folder / name, read_table(self.whole / name, contract).filter(kept), contract)

    def _drawn(self, share: float) -> pa.Array:
        """Which rows stay: all that are held out, and those drawn."""
        rows = read_table(self.whole / "tokens", TOKENS, columns=["label", "split"])
        splits, labels = np.array(rows["split"].to_pylist()), np.array(rows["label"].to_pylist(), dtype=object)
        generator = np.random.default_rng([self.seed, round(1000 * share)])
        kept = splits != "train"
        desired = round(share * self.rows)
        for label, number in ((True, desired), (False, self.rows - desired)):
            members = np.flatnonzero((splits == "train") & (labels == label))
            if len(members) < number:
                raise ValueError(
                    f"expected {number} rows with label {label} to draw, found {len(members)}; "
                    "raise demo_feedback.rows or lower --rows"
                )
            kept[generator.permutation(members)[:number]] = True
        return pa.array(kept)


class Run(NamedTuple):
    """One training, and what came of it."""

    world: str
    share: float | None
    value: str
    learning_rate: float
    seed: int
    gain: float
    kl: float
    accuracy: float
    """Of telling held-out labels by whether the reward is above the shift."""


def gain_at(runs: Sequence[Run], kl: float) -> float | None:
    """Gain at a KL, interpolated over the learning rates of one seed; None where they don't reach it on both sides."""
    points = sorted(runs, key=lambda run: run.learning_rate)
    for low, high in pairwise(points):
        if low.kl <= kl <= high.kl and low.kl < high.kl:
            part = (math.log(kl) - math.log(low.kl)) / (math.log(high.kl) - math.log(low.kl))
            return low.gain + part * (high.gain - low.gain)
    return None


def _cell(values: Sequence[float], *, signed: bool = False) -> str:
    if not values:
        return ""
    found = spread(values)
    form = "+.3f" if signed else ".3f"
    if len(values) == 1:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} [{found.mean - found.half_width:{form}}, {found.mean + found.half_width:{form}}]"


def _differences(found: Mapping[int, float], first: Mapping[int, float]) -> list[str]:
    """Cells of the difference from the first value, seed by seed."""
    values = [found[seed] - first[seed] for seed in sorted(found.keys() & first.keys())]
    if not values or found is first:
        return ["", ""]
    return [_cell(values, signed=True), f"{sum(value > 0 for value in values)} of {len(values)}"]


def table_at_equal_settings(runs: Sequence[Run]) -> list[str]:
    """Gain and KL of each value at each learning rate, as lines of a Markdown table."""
    lines = [
        "| world | desired | learning rate | value | gain | KL | accuracy | against the first | seeds above |",
        "|---" * 9 + "|",
    ]
    groups: dict[tuple[str, float | None, float], dict[str, dict[int, Run]]] = {}
    for run in runs:
        by_value = groups.setdefault((run.world, run.share, run.learning_rate), {})
        by_value.setdefault(run.value, {})[run.seed] = run
    for (world, share, rate), by_value in groups.items():
        gains = {name: {seed: run.gain for seed, run in found.items()} for name, found in by_value.items()}
        first = next(iter(gains.values()))
        for name, found in by_value.items():
            cells = [world, _share(share), f"{rate:g}", name, _cell(list(gains[name].values()), signed=True)]
            cells += [_cell([getattr(run, column) for run in found.values()]) for column in ("kl", "accuracy")]
            cells += _differences(gains[name], first)
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_at_equal_kl(runs: Sequence[Run], levels: Sequence[float]) -> list[str]:
    """Gain of each value at each KL, as lines of a Markdown table."""
    lines = [
        "| world | desired | KL | value | seeds | gain | against the first | seeds above |",
        "|---" * 8 + "|",
    ]
    groups: dict[tuple[str, float | None], dict[str, dict[int, list[Run]]]] = {}
    for run in runs:
        by_value = groups.setdefault((run.world, run.share), {})
        by_value.setdefault(run.value, {}).setdefault(run.seed, []).append(run)
    for (world, share), by_value in groups.items():
        for level in levels:
            reached = {
                name: {seed: gain for seed, found in by_seed.items() if (gain := gain_at(found, level)) is not None}
                for name, by_seed in by_value.items()
            }
            first = next(iter(reached.values()))
            for name, found in reached.items():
                cells = [world, _share(share), f"{level:g}", name, str(len(found))]
                cells += [_cell(list(found.values()), signed=True), *_differences(found, first)]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _share(share: float | None) -> str:
    return "as it is" if share is None else f"{share:g}"


def main() -> None:
    """Run what the command line asks for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vary", required=True, metavar="NAME=VALUE,VALUE", help="the first value is compared with")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    parser.add_argument("--correction", default="none", help="where --vary doesn't say it")
    parser.add_argument("--desired-shares", nargs="+", type=float, default=[None])
    parser.add_argument("--rows", type=int, default=2000, help="rows to train on, with --desired-shares")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-4, 2e-4, 3e-4])
    parser.add_argument("--kl-levels", nargs="+", type=float, default=[0.1, 0.2, 0.5, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts and results; may be deleted")
    parser.add_argument("--output", type=Path, help="JSON file for the results of all runs")
    arguments = parser.parse_args()
    params = changed(yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8")), arguments.settings)
    arguments.work.mkdir(parents=True, exist_ok=True)

    runs = []
    with (arguments.work / "log.txt").open("a", encoding="utf-8") as log:
        for world in arguments.worlds:
            for seed in arguments.seeds:
                for share in arguments.desired_shares:
                    experiment = SkewedExperiment(
                        arguments.work, params, world=world, seed=seed, share=share, rows=arguments.rows
                    )
                    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                        experiment.prepare()
                        found = _runs(experiment, arguments)
                    runs += found
                    print(
                        f"{world} seed {seed} desired {_share(share)}: {json.dumps([run[2:] for run in found])}",
                        flush=True,
                    )
    if arguments.output:
        write_json(arguments.output, {"vary": arguments.vary, "runs": [run._asdict() for run in runs]})
    print("\n".join([*table_at_equal_settings(runs), "", *table_at_equal_kl(runs, arguments.kl_levels)]))


def _runs(experiment: SkewedExperiment, arguments: Any) -> list[Run]:
    """All values and learning rates in one experiment."""
    name, _, values = arguments.vary.partition("=")
    found = []
    for chosen in values.split(","):
        for rate in arguments.learning_rates:
            is_correction = name == "density_ratio.correction"
            result = experiment.result(
                chosen if is_correction else arguments.correction,
                [f"training.bco.learning_rate={rate}", *([] if is_correction else [f"{name}={chosen}"])],
            )
            numbers = (value(result, path) for path in (GAIN, KL, ACCURACY))
            found.append(Run(experiment.world, experiment.share, chosen, rate, experiment.seed, *numbers))
    return found


if __name__ == "__main__":
    main()
