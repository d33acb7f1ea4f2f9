"""Which correction helps in which world of the demo: BCO under each, in both worlds, over several seeds.

    python -m benchmarks.demo_experiments --work .cache/demo_experiments --output .cache/demo_experiments.json
    python -m benchmarks.demo_experiments --set training.bco.learning_rate=1e-4 ...

The stages' own `run` functions are called in this process on folders below --work. World, base model, tokens,
embeddings and reference log-probabilities of a seed are made once and shared by all corrections, and by later calls
with other training parameters. Parameters are those of params.yaml, changed by --set; the seed goes to the world, to
the base model, to training and to evaluation. A run whose result stands below --work isn't run again.

The table has, per world and correction, the mean over seeds of each number and its standard deviation; the interval
is Student's, of the mean over seeds, and so is that of the difference from no correction, which is taken seed by seed.
"""

import argparse
import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy.stats import t as student

from stages import (
    base_model,
    demo_feedback,
    density_ratio,
    evaluation,
    ingestion,
    normalization,
    prompt_embedding,
    reference_logprobs,
    shift_diagnosis,
    tokenization,
    training,
    training_rows,
)
from stages.contracts.artifact import read_table
from stages.contracts.files import tree_digest, write_json
from stages.contracts.generations import GENERATIONS
from stages.contracts.rows import content_id
from stages.contracts.stage import PARAMS_FILE, Section, parse_section
from stages.demo.world import PARTS
from stages.trainers.bco.section import BCOTrainingParams

WORLDS = ("rater_bias", "competence")
CORRECTIONS = ("none", "udm", "offset", "deployment")
METRICS = {
    "true reward": ("true_reward", "policy"),
    "gain on the start": ("true_reward", "gain"),
    "win rate": ("win_rate",),
    "KL": ("kl",),
    "in the topic's words": ("on_topic",),
}
"""Columns of the table: where each stands in evaluation's metrics."""

Params = dict[str, Any]


class Spread(NamedTuple):
    """A number over seeds."""

    mean: float
    deviation: float
    half_width: float
    """Of the 95 % interval of the mean."""


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and half the width of the interval of values from independent seeds."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Spread(mean, 0.0, float("inf"))
    deviation = (sum((value - mean) ** 2 for value in values) / (n - 1)) ** 0.5
    return Spread(mean, deviation, float(student.ppf(0.975, n - 1)) * deviation / n**0.5)


def changed(params: Params, settings: Sequence[str]) -> Params:
    """A copy of the parameters with each "dotted.name=value" put in; values are YAML."""
    changed_params: Params = json.loads(json.dumps(params))
    for setting in settings:
        name, _, value = setting.partition("=")
        *path, last = name.split(".")
        section = changed_params
        for part in path:
            section = section.setdefault(part, {})
        # YAML 1.1 reads 1e-4 as text.
        parsed = yaml.safe_load(value)
        with contextlib.suppress(TypeError, ValueError):
            parsed = float(parsed) if isinstance(parsed, str) else parsed
        section[last] = parsed
    return changed_params


class Experiment:
    """One world from one seed, with what all corrections share."""

    def __init__(self, work: Path, params: Params, *, world: str, seed: int) -> None:
        given = [f"demo_feedback.world={world}", f"demo_feedback.seed={seed}", f"base_model.seed={seed}"]
        self.given = self.params = changed(params, given)
        sections = ("demo_feedback", "base_model", "ingestion", "normalization", "tokenization", "prompt_embedding")
        key = content_id({name: self.params.get(name) for name in sections})[:12]
        self.folder = work / f"{world}-{seed}-{key}"
        self.world = world
        self.seed = seed

    def section(self, kind: type[Section], name: str) -> Any:
        """A section of the parameters, checked."""
        values: Any = self.params
        for part in name.split("."):
            values = values.get(part, {})
        return parse_section(kind, values, where=name)

    def path(self, name: str) -> Path:
        """Where an artifact of this experiment stands."""
        return self.folder / name

    def prepare(self) -> None:
        """Make what the corrections share, unless an earlier call did."""
        done = self.path("prepared")
        if done.exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        log, model, completions, tokens = (
            self.path(name) for name in ("feedback.jsonl", "base_model", "completions", "tokens")
        )
        demonstrations = self.path("demonstrations.jsonl")
        demo_feedback.run(
            feedback=log,
            demonstrations=demonstrations,
            truth=self.path("truth.json"),
            params=self.section(demo_feedback.DemoFeedbackParams, "demo_feedback"),
        )
        base_model.run(
            source=demonstrations,
            base_model=model,
            params=self.section(base_model.BaseModelParams, "base_model"),
        )
        between = {name: self.path(name) for name in ("feedback_events", "ledger")}
        ingestion.run(
            feedback=log,
            **between,
            metrics=self.path("ingestion.json"),
            scratch=self.path("scratch"),
            params=self.section(ingestion.IngestionParams, "ingestion"),
        )
        normalization.run(
            **between,
            base_model=model,
            completions=completions,
            rejects=self.path("rejects"),
            metrics=self.path("normalization.json"),
            params=self.section(normalization.NormalizationParams, "normalization"),
        )
        tokenization.run(
            completions=completions,
            base_model=model,
            tokens=tokens,
            rejects=self.path("tokenization_rejects"),
            metrics=self.path("tokenization.json"),
            memo=self.path("memo-tokens"),
            params=self.section(tokenization.TokenizationParams, "tokenization"),
        )
        prompt_embedding.run(
            completions=completions,
            base_model=model,
            prompt_embeddings=self.path("prompt_embeddings"),
            memo=self.path("memo-embeddings"),
            params=self.section(prompt_embedding.PromptEmbeddingParams, "prompt_embedding"),
        )
        reference_logprobs.run(
            tokens=tokens,
            base_model=model,
            reference_logps=self.path("reference_logps"),
            memo=self.path("memo-logps"),
            params=self.section(reference_logprobs.ReferenceLogprobsParams, "reference_logprobs"),
        )
        done.touch()

    def result(self, correction: str, settings: Sequence[str] = ()) -> dict[str, Any]:
        """Train and evaluate under a correction; the metrics of its stages.

        Args:
            correction: what is done about the shift of the prompts.
            settings: further parameters of this run alone, as "dotted.name=value".
        """
        given = [f"density_ratio.correction={correction}", f"training.bco.seed={self.seed}", *settings]
        self.params = changed(self.given, [*given, f"evaluation.seed={self.seed}"])
        sections = ("density_ratio", "training", "evaluation", "shift_diagnosis")
        settings = {name: self.params.get(name) for name in sections}
        folder = self.folder / f"{correction}-{content_id(settings, tree_digest(self.path('base_model')))[:12]}"
        file = folder / "result.json"
        if not file.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            metrics = dict(self._run(folder))
            write_json(file, {"world": self.world, "seed": self.seed, "correction": correction, **metrics})
            for large in ("model", "checkpoints"):
                shutil.rmtree(folder / large, ignore_errors=True)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found["evaluation"]["on_topic"] = {"value": share_on_topic(folder / "generations", self.path("truth.json"))}
        return found

    def _run(self, folder: Path) -> Iterator[tuple[str, Any]]:
        shared = {name: self.path(name) for name in ("tokens", "reference_logps")}
        completions, model = self.path("completions"), self.path("base_model")
        density_ratio.run(
            tokens=shared["tokens"],
            prompt_embeddings=self.path("prompt_embeddings"),
            density_ratios=folder / "density_ratios",
            classifier=folder / "classifier.json",
            metrics=folder / "density_ratio.json",
            plots=folder / "density_plots",
            params=self.section(density_ratio.DensityRatioParams, "density_ratio"),
        )
        yield "density_ratio", _read(folder / "density_ratio.json")
        shift_diagnosis.run(
            **shared,
            completions=completions,
            density_ratios=folder / "density_ratios",
            density_metrics=folder / "density_ratio.json",
            metrics=folder / "shift_diagnosis.json",
            params=self.section(shift_diagnosis.ShiftDiagnosisParams, "shift_diagnosis"),
        )
        yield "shift_diagnosis", _read(folder / "shift_diagnosis.json")
        (folder / "checkpoints").mkdir()
        training_rows.run(
            **shared, kind="labelled", density_ratios=folder / "density_ratios", rows=folder / "rows", params=None
        )
        training.run(
            tokens=shared["tokens"],
            rows=folder / "rows",
            method="bco",
            base_model=model,
            model=folder / "model",
            metrics=folder / "training.json",
            plots=folder / "training.csv",
            scratch=folder / "checkpoints",
            params=self.section(BCOTrainingParams, "training.bco"),
        )
        yield "training", _read(folder / "training.json")
        evaluation.run(
            **shared,
            base_model=model,
            model=folder / "model",
            completions=completions,
            generations=folder / "generations",
            metrics=folder / "evaluation.json",
            plots=folder / "evaluation_plots",
            scratch=folder / "evaluation_scratch",
            params=self.section(evaluation.EvaluationParams, "evaluation"),
        )
        yield "evaluation", _read(folder / "evaluation.json")


def share_on_topic(generations: Path, truth: Path) -> float:
    """Share of the policy's sampled answers that are three answers of the topic asked about, right or wrong.

    All answers in the log are; a policy that is pushed away from what people disliked may end elsewhere.
    """
    topics = {topic["name"]: set(topic["answers"].values()) for topic in _read(truth)["topics"]}
    rows = read_table(generations, GENERATIONS, columns=["slice", "policy"]).to_pylist()
    answers = [(answer.split(", "), topics[row["slice"]]) for row in rows for answer in row["policy"]]
    return sum(len(parts) == PARTS and known.issuperset(parts) for parts, known in answers) / len(answers)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def value(result: Mapping[str, Any], path: Sequence[str]) -> float:
    """A number of evaluation's metrics."""
    found: Any = result["evaluation"]
    for part in path:
        found = found[part]
    return float(found["value"])


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The results as lines of a Markdown table, in the order in which they came."""
    names = list(METRICS)
    lines = [
        "| " + " | ".join(["world", "correction", "seeds", *names, "against none", "seeds above none"]) + " |",
        "|---" * (len(names) + 5) + "|",
    ]
    groups: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["world"], result["correction"]), {})[result["seed"]] = result
    for (world, correction), by_seed in groups.items():
        cells = [world, correction, str(len(by_seed))]
        for name, path in METRICS.items():
            found = spread([value(result, path) for result in by_seed.values()])
            interval = f" [{found.mean - found.half_width:+.3f}, {found.mean + found.half_width:+.3f}]"
            cells.append(f"{found.mean:.3f} ± {found.deviation:.3f}" + (interval if name.startswith("gain") else ""))
        cells += _against_none(by_seed, groups.get((world, "none"), {}))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _against_none(by_seed: Mapping[int, Mapping[str, Any]], none: Mapping[int, Mapping[str, Any]]) -> list[str]:
    path = METRICS["true reward"]
    differences = [value(by_seed[seed], path) - value(none[seed], path) for seed in by_seed if seed in none]
    if not differences or by_seed is none:
        return ["", ""]
    found = spread(differences)
    interval = f"[{found.mean - found.half_width:+.3f}, {found.mean + found.half_width:+.3f}]"
    above = sum(difference > 0 for difference in differences)
    return [f"{found.mean:+.3f} {interval}", f"{above} of {len(differences)}"]


def main() -> None:
    """Run what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    parser.add_argument("--corrections", nargs="+", choices=CORRECTIONS, default=CORRECTIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts and results; may be deleted")
    parser.add_argument("--output", type=Path, help="JSON file for the results of all runs")
    arguments = parser.parse_args()
    params = changed(yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8")), arguments.settings)
    arguments.work.mkdir(parents=True, exist_ok=True)

    results = []
    with (arguments.work / "log.txt").open("a", encoding="utf-8") as log:
        for world in arguments.worlds:
            for seed in arguments.seeds:
                experiment = Experiment(arguments.work, params, world=world, seed=seed)
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                    experiment.prepare()
                for correction in arguments.corrections:
                    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                        results.append(experiment.result(correction))
                    gain = value(results[-1], METRICS["gain on the start"])
                    print(f"{world} seed {seed} {correction}: gain {gain:+.3f}", flush=True)
    if arguments.output:
        write_json(arguments.output, {"settings": arguments.settings, "results": results})
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
