"""Stage `reward_report`: one page that says how far a reward model agrees with people.

    dvc repro reward_report

The page opens anywhere: it holds its charts as drawings, asks for nothing from elsewhere and runs no script.
"""

from pydantic import Field

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
    from stages.page.files import read_csv, read_json
    from stages.page.rendering import metrics_are_there, write_page
    from stages.page.reward import reward_results, reward_training, reward_verdict
    from stages.page.reward_template import REWARD_PAGE

    evaluation = read_json(evaluation_metrics)
    with metrics_are_there():
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
    read = {"training": training_metrics, "evaluation": evaluation_metrics, "plots of evaluation": evaluation_plots}
    write_page(
        report,
        REWARD_PAGE,
        read=read,
        title=params.title,
        subtitle=f"{evaluation['counts']['pairs']:,} held-out pairs",
        sections=SECTIONS,
        **content,
    )


if __name__ == "__main__":
    stage_main(run)
