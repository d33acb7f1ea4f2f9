"""Rewards of images, and how they are named."""

import io

import pytest
import torch
from PIL import Image

from stages.models.image_rewards import brightness, encoded, jpeg_size, jpeg_smallness, named_image_reward, rewards_of


def blueness(images, prompts, metadata):
    return images[:, 2].mean((1, 2))


def of_images_alone(images):
    return images.mean((1, 2, 3))


def pictures():
    """Black, white, and noise."""
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16), noise])


def test_brightness_is_the_mean_of_the_pixels():
    found = brightness(pictures(), ("a", "b", "c"), ({}, {}, {}))

    torch.testing.assert_close(found[:2], torch.tensor([0.0, 1.0]))
    assert 0.4 < found[2] < 0.6


def test_detail_makes_a_jpeg_larger():
    sizes = jpeg_size(pictures(), ("a", "b", "c"), ({}, {}, {}))

    assert sizes[2] > sizes[0] == sizes[1] > 0.1
    assert torch.equal(jpeg_smallness(pictures(), ("a", "b", "c"), ({}, {}, {})), -sizes)


def test_an_encoded_image_has_the_pixels():
    image = pictures()[2]

    read = Image.open(io.BytesIO(encoded(image, "PNG")))

    assert read.size == (16, 16)
    red, green, blue = read.getpixel((3, 5))
    assert [red, green, blue] == (image[:, 5, 3] * 255).round().int().tolist()


def test_a_function_of_ones_own_is_found_by_its_name():
    reward = named_image_reward("tests.models.test_image_rewards:blueness")

    assert reward(pictures(), (), ())[:2].tolist() == [0.0, 1.0]
    assert named_image_reward("brightness") is brightness


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bright", "reward: expected brightness, jpeg_size, jpeg_smallness or package.module:function, found 'bright'"),
        ("no.such.module:f", "expected a module 'no.such.module' that can be imported, .* found: No module"),
        (
            "tests.models.test_image_rewards:f",
            "expected a function 'f' in the module 'tests.models.test_image_rewards', found none",
        ),
        ("tests.models.test_image_rewards:__doc__", "found a str"),
        ("tests.models.test_image_rewards:of_images_alone", "expected a function of images, prompts, metadata"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        named_image_reward(name)


def test_o3_integer_rewards_become_floats():
    values, about = rewards_of([1, 2], prompts=("a", "b"))

    assert values.dtype == torch.float32
    assert about == {}


def test_what_a_function_says_of_its_rewards_is_kept():
    values, about = rewards_of((torch.tensor([0.5]), {"why": "blue"}), prompts=("a",))

    assert (values.tolist(), about) == ([0.5], {"why": "blue"})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(3), r"expected 2 rewards, one per image, found shape \(3,\)"),
        (torch.tensor([1.0, float("nan")]), r"expected finite rewards, found others for \['b'\]"),
    ],
)
def test_refuses_what_is_no_reward_per_image(result, message):
    with pytest.raises(ValueError, match=message):
        rewards_of(result, prompts=("a", "b"))
