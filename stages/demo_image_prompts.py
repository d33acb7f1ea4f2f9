"""Stage `demo_image_prompts`: write the demo's list of prompts for images, which stands for one of your own."""

from stages.contracts.files import write_text
from stages.contracts.stage import Output, Section, stage_main


class DemoImagePromptsParams(Section):
    """Section `demo_image_prompts` of params.yaml; there is nothing to choose."""


def run(*, prompts: Output, params: DemoImagePromptsParams) -> None:  # noqa: ARG001 - every stage has its section
    """Write the list.

    Args:
        prompts: text file to write, a prompt on each line.
        params: none.
    """
    from stages.demo.image_prompts import image_prompts

    lines = image_prompts()
    write_text(prompts, "".join(f"{line}\n" for line in lines))
    print(f"{len(lines)} prompts")


if __name__ == "__main__":
    stage_main(run)
