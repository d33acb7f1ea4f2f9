"""Stage `image_prompts`: read a list of prompts for images and hold some of them out."""

from pydantic import Field

from stages.contracts.artifact import write_table
from stages.contracts.files import write_json
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.contracts.stage import Input, Output, Section, stage_main


class ImagePromptsParams(Section):
    """Section `image_prompts` of params.yaml."""

    test_share: float = Field(0.2, ge=0, lt=1)
    """Share of the prompts that are held out, chosen by a hash of the prompt."""


def run(*, prompts: Input, image_prompts: Output, metrics: Output, params: ImagePromptsParams) -> None:
    """Write each prompt once, with the side of the split that it stands on.

    Args:
        prompts: text file with a prompt on each line.
        image_prompts: `image_prompts` artifact to write, in the order of the file.
        metrics: JSON to write: lines_read = prompts + repeated + empty.
        params: share held out.

    Raises:
        ValueError: the file isn't UTF-8, or one side of the split has no prompt.
    """
    import pyarrow as pa

    from stages.text.prompt_list import read_prompt_list

    found = read_prompt_list(prompts, test_share=params.test_share)
    write_table(image_prompts, pa.Table.from_pylist(found.rows), IMAGE_PROMPTS)
    counts = {"lines_read": found.num_lines, "prompts": len(found.rows), **found.counts}
    write_json(metrics, counts)
    print(", ".join(f"{count:,} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    stage_main(run)
