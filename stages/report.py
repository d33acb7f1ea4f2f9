"""Stage `report`: one page that says what happened and shows it.

    dvc repro report@bco

The page opens anywhere: it holds its charts as drawings, asks for nothing from elsewhere and runs no script. Whatever
came from the log or from a model stands in it as text.
"""

from pydantic import Field

from stages.contracts.artifact import read_table
from stages.contracts.generations import GENERATIONS
from stages.contracts.stage import Input, Output, Section, stage_main

SECTIONS = (
    ("results", "Results"),
    ("training", "Training"),
    ("shift", "Shift"),
    ("answers", "Answers"),
    ("data", "Data"),
    ("graph", "Graph"),
)


class ReportParams(Section):
    """Section `report` of params.yaml."""

    title: str = "What the feedback did to the model"
    """Heading of the page."""
    num_examples: int = Field(24, ge=0)
    """Prompts whose answers are shown, at most."""


def run(
    *,
    normalization_metrics: Input,
    tokenization_metrics: Input,
    density_metrics: Input,
    density_plots: Input,
    shift_metrics: Input,
    training_metrics: Input,
    training_plots: Input,
    evaluation_metrics: Input,
    evaluation_plots: Input,
    generations: Input,
    report: Output,
    params: ReportParams,
) -> None:
    """Write the page.

    Args:
        normalization_metrics: what became of each row of the log.
        tokenization_metrics: what was cut or had no room.
        density_metrics: size of the shift between prompts of the two labels, or why it wasn't measured.
        density_plots: folder with reliability.csv and weights.csv.
        shift_metrics: why the prompts differ.
        training_metrics: what was trained on.
        training_plots: CSV of the curves.
        evaluation_metrics: policy against reference.
        evaluation_plots: folder with calibration.csv and by_slice.csv.
        generations: `generations` artifact.
        report: HTML file to write.
        params: heading, and how many examples.

    Raises:
        ContractError: `generations` is missing or damaged.
        ValueError: a file lacks something that the page shows.
    """
    from stages.page import sections
    from stages.page.files import read_csv, read_json
    from stages.page.rendering import metrics_are_there, write_page
    from stages.page.template import PAGE

    inputs = {
        "normalization": normalization_metrics,
        "tokenization": tokenization_metrics,
        "density_ratio": density_metrics,
        "shift_diagnosis": shift_metrics,
        "training": training_metrics,
        "evaluation": evaluation_metrics,
    }
    found = {name: read_json(path) for name, path in inputs.items()}
    read = {**inputs, "generations": generations}
    method = str(found["training"].get("method", "")).upper()
    evaluation = found["evaluation"]
    groups = sections.answer_groups(read_table(generations, GENERATIONS).to_pylist(), num_examples=params.num_examples)
    with metrics_are_there():
        content = {
            "verdict": sections.verdict(evaluation),
            "results": sections.results(
                evaluation,
                read_csv(evaluation_plots / "by_slice.csv"),
                read_csv(evaluation_plots / "calibration.csv"),
            ),
            "training": sections.training(found["training"], read_csv(training_plots), beta=evaluation.get("beta")),
            "shift": sections.shift(
                found["density_ratio"],
                found["shift_diagnosis"],
                read_csv(density_plots / "weights.csv"),
                read_csv(density_plots / "reliability.csv"),
            ),
            "data": sections.data(found["normalization"], found["tokenization"]),
        }
    write_page(
        report,
        PAGE,
        read=read,
        title=params.title,
        subtitle=f"{method} on held-out prompts; judge: {evaluation.get('judge', 'none')}",
        sections=SECTIONS,
        answer_groups=groups,
        answers_intro="Sampled answers of both models to the same held-out prompts"
        + (", each with its score." if "true_reward" in evaluation else "."),
        graph=sections.graph(),
        **content,
    )


if __name__ == "__main__":
    stage_main(run)
