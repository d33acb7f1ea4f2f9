"""Stage `diffusion_report`: one page with images before and after training, and what they are rewarded.

    dvc repro diffusion_report

The page opens anywhere: it holds its images and charts, asks for nothing from elsewhere and runs no script.
"""

from pydantic import Field

from stages.contracts.artifact import read_table
from stages.contracts.images import IMAGES
from stages.contracts.stage import Input, Output, Section, stage_main

SECTIONS = (("images", "Images"), ("training", "Training"), ("inputs", "Inputs"))


class DiffusionReportParams(Section):
    """Section `diffusion_report` of params.yaml."""

    title: str = "What the reward did to the images"
    """Heading of the page."""
    num_examples: int = Field(12, ge=0)
    """Prompts whose images are shown, at most."""


def run(
    *,
    training_metrics: Input,
    training_plots: Input,
    evaluation_metrics: Input,
    images: Input,
    report: Output,
    params: DiffusionReportParams,
) -> None:
    """Write the page.

    Args:
        training_metrics: what was trained on.
        training_plots: CSV of the curves.
        evaluation_metrics: rewards before and after.
        images: `images` artifact.
        report: HTML file to write.
        params: heading, and how many examples.

    Raises:
        ContractError: `images` is missing or damaged.
        ValueError: a file lacks something that the page shows.
    """
    from stages.page.files import read_csv, read_json
    from stages.page.image_template import IMAGE_PAGE
    from stages.page.images import image_grid, image_training, image_verdict
    from stages.page.rendering import metrics_are_there, write_page

    evaluation = read_json(evaluation_metrics)
    rows = read_table(images, IMAGES).to_pylist()
    with metrics_are_there():
        content = {
            "verdict": image_verdict(evaluation),
            "training": image_training(read_json(training_metrics), read_csv(training_plots)),
        }
    read = {"training": training_metrics, "evaluation": evaluation_metrics, "images": images}
    write_page(
        report,
        IMAGE_PAGE,
        read=read,
        title=params.title,
        subtitle=f"Images of held-out prompts; reward: {evaluation['reward_function']}",
        sections=SECTIONS,
        grid=image_grid(rows, num_examples=params.num_examples),
        **content,
    )


if __name__ == "__main__":
    stage_main(run)
