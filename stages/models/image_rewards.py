"""Rewards of images: functions that say how good each image of a batch is.

The two built in need no judgement: they show that training works, and stand for a function of your own.
"""

import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stages.contracts.named_function import errors_named, named_function

ImageReward = Callable[[Tensor, tuple[str, ...], tuple[Any, ...]], Any]
"""Takes images (n, 3, h, w) from 0 to 1, their prompts, and what the prompt function said of each; gives n rewards, or
a tuple of the rewards and something about them for the image hook."""


def brightness(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Tensor:  # noqa: ARG001 - common
    """Mean of all pixels and channels of each image, 0 to 1."""
    return images.float().mean((1, 2, 3))


def jpeg_size(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Tensor:  # noqa: ARG001 - common
    """Kilobytes of each image as a JPEG of quality 95: the more detail, the larger."""
    return torch.tensor([len(encoded(image, "JPEG", quality=95)) / 1000 for image in images])


def jpeg_smallness(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Tensor:
    """The negative of `jpeg_size`: the plainer, the higher."""
    return -jpeg_size(images, prompts, metadata)


KNOWN: dict[str, ImageReward] = {
    "brightness": brightness,
    "jpeg_size": jpeg_size,
    "jpeg_smallness": jpeg_smallness,
}


def named_image_reward(name: str) -> ImageReward:
    """The reward that params.yaml names.

    Args:
        name: one of `KNOWN`, or "package.module:function", a Python function like those here.

    Raises:
        ValueError: the name leads to no function of three arguments.
    """
    if name in KNOWN:
        return KNOWN[name]
    own = named_function(name, where="reward", known=KNOWN, arguments=("images", "prompts", "metadata"))

    def named(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> Any:
        with errors_named(f"reward {name}"):
            return own(images, prompts, metadata)

    return named


def rewards_of(result: Any, *, prompts: tuple[str, ...]) -> tuple[Tensor, Any]:
    """What a reward function gave, checked.

    Args:
        result: n rewards of any kind of number, or a tuple of those and something about them.
        prompts: of the images, length n.

    Returns:
        The rewards, float32 of shape (n,), and what was said about them, an empty dict if nothing.

    Raises:
        ValueError: there isn't one finite reward per image.
    """
    rewards, about = result if isinstance(result, tuple) else (result, {})
    values = torch.as_tensor(rewards).detach().to("cpu", torch.float32)
    if values.shape != (len(prompts),):
        raise ValueError(
            f"reward function: expected {len(prompts)} rewards, one per image, found shape {tuple(values.shape)}"
        )
    if not values.isfinite().all():
        wrong = [prompt for prompt, is_finite in zip(prompts, values.isfinite().tolist(), strict=True) if not is_finite]
        raise ValueError(f"reward function: expected finite rewards, found others for {wrong[:5]}")
    return values, about


def encoded(image: Tensor, form: str, **options: Any) -> bytes:
    """An image as the bytes of a file.

    Args:
        image: 0 to 1; shape (3, h, w).
        form: name of the format in Pillow, such as "PNG".
        options: of that format.
    """
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(file, form, **options)
    return file.getvalue()
