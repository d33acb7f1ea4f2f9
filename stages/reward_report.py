"""Stage `reward_report`: one page that says how far a reward model agrees with people.

    dvc repro reward_report

The page opens anywhere: it holds its charts as drawings, asks for nothing from elsewhere and runs no script.
"""

from pydantic import Field

from stages.contracts.files import tree_digest, write_text
from stages.contracts.stage import Input, Output, Section, stage_main

SECTIONS = (("results", "Results"), ("training", "Training"), ("inputs", "Inputs"))


class RewardReportParams(Section):
    """Section `reward_report` of params.yaml."""

    title: str = Field("How far the reward model agrees with people", min_length=1)
    """Heading of the page."""


def run(
    *,
    training_metrics: Input,
    training_plots: Input,
    evaluation_metrics: Input,
    evaluation_plots: Input,
    report: Output,
    params: RewardReportParams,
) -> None:
    """Write the page.

    Args:
        training_metrics: what was trained on.
        training_plots: CSV of the curves.
        evaluation_metrics: agreement with people on held-out pairs.
        evaluation_plots: folder with calibration.csv, by_length.csv and by_slice.csv.
        report: HTML file to write.
        params: heading.

    Raises:
        ValueError: a file lacks something that the page shows.
    """
    from jinja2 import Environment, StrictUndefined

    from stages.page.files import read_csv, read_json
    from stages.page.reward import reward_results, reward_training, reward_verdict
    from stages.page.reward_template import REWARD_PAGE

    evaluation = read_json(evaluation_metrics)
    try:
        content = {
            "verdict": reward_verdict(evaluation),
            "results": reward_results(
                evaluation,
                read_csv(evaluation_plots / "calibration.csv"),
                read_csv(evaluation_plots / "by_length.csv"),
                read_csv(evaluation_plots / "by_slice.csv"),
            ),
            "training": reward_training(read_json(training_metrics), read_csv(training_plots)),
        }
    except KeyError as error:
        raise ValueError(f"expected {error} among the metrics, found none; rerun the stages before") from None
    read = {"training": training_metrics, "evaluation": evaluation_metrics, "plots of evaluation": evaluation_plots}
    # Every value is escaped unless it is Markup, and only charts are.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.from_string(REWARD_PAGE).render(
        title=params.title,
        subtitle=f"{evaluation['counts']['pairs']:,} held-out pairs",
        sections=SECTIONS,
        inputs=[(name, tree_digest(path)[:16]) for name, path in read.items()],
        **content,
    )
    write_text(report, page + "\n")
    print(f"one page of {len(page) / 1000:,.0f} kB")


if __name__ == "__main__":
    stage_main(run)
