"""The graph of DDPO on images, stage by stage, on a pipeline small enough for tests."""

import json
import random
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch

from stages import base_diffusion, ddpo_training, demo_image_prompts, diffusion_evaluation, diffusion_report
from stages import image_prompts as image_prompts_stage
from stages.contracts.artifact import read_table
from stages.contracts.files import tree_digest
from stages.contracts.image_prompts import IMAGE_PROMPTS
from stages.contracts.images import IMAGES
from stages.models.diffusion_pointer import pipeline_folder
from stages.models.image_comparison import load_policy
from stages.trainers.ddpo.section import DiffusionTrainingParams
from stages.trainers.ddpo.trainer import DDPOTrainer
from tests.models.tiny_diffusion import save_tiny
from tests.stages.training_runs import rows_of, told_to_stop

TRAINING = {
    "num_epochs": 2,
    "save_freq": 1,
    "sample_num_steps": 2,
    "sample_batch_size": 4,
    "sample_num_batches_per_epoch": 1,
    "train_batch_size": 2,
    "train_learning_rate": 1e-2,
    "train_clip_range": 0.1,
}
EVALUATION = {"num_prompts": 3, "num_samples": 2, "num_steps": 2, "batch_size": 4, "num_resamples": 50}
SCRATCH = {"latent_size": 4, "channels": 8, "hidden_size": 8}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_DEVICE", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with the prompts and the base."""
    folder = tmp_path_factory.mktemp("graph")
    demo_image_prompts.run(prompts=folder / "prompts.txt", params=demo_image_prompts.DemoImagePromptsParams())
    image_prompts_stage.run(
        prompts=folder / "prompts.txt",
        image_prompts=folder / "image_prompts",
        metrics=folder / "image_prompts.json",
        params=image_prompts_stage.ImagePromptsParams(),
    )
    rows_of("image_prompts", folder / "rows", image_prompts=folder / "image_prompts")
    base_diffusion.run(
        source=folder / "prompts.txt",
        base_diffusion=folder / "base",
        params=base_diffusion.BaseDiffusionParams(scratch=SCRATCH),
    )
    return folder


def train(made, to, *, scratch=None, **params):
    to.mkdir(parents=True, exist_ok=True)
    ddpo_training.run(
        base_model=made / "base",
        image_prompts=made / "image_prompts",
        rows=made / "rows",
        model=to / "model",
        metrics=to / "training.json",
        plots=to / "training.csv",
        scratch=scratch or to / "scratch",
        params=DiffusionTrainingParams(**{**TRAINING, **params}),
    )


def evaluate(made, model, to, **params):
    diffusion_evaluation.run(
        base_model=made / "base",
        model=model,
        image_prompts=made / "image_prompts",
        images=to / "images",
        metrics=to / "evaluation.json",
        plots=to / "plots",
        params=diffusion_evaluation.DiffusionEvaluationParams(**{**EVALUATION, **params}),
    )


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """Folder with what training and evaluation write, of an adapter."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_DEVICE", "cpu")
        train(made, folder)
        evaluate(made, folder / "model", folder)
    return folder


def test_all_lines_of_the_list_are_accounted_for(made):
    rows = read_table(made / "image_prompts", IMAGE_PROMPTS).to_pylist()
    counts = json.loads((made / "image_prompts.json").read_text())

    assert counts["lines_read"] == counts["prompts"] + counts["empty"] + counts["repeated"] == len(rows) == 72
    assert 0 < counts["test"] == sum(row["split"] == "test" for row in rows) < counts["train"]


def test_a_pipeline_from_scratch_is_the_same_bytes_each_time(made, tmp_path):
    arguments = {"source": made / "prompts.txt", "params": base_diffusion.BaseDiffusionParams(scratch=SCRATCH)}

    base_diffusion.run(base_diffusion=tmp_path / "base", **arguments)

    assert tree_digest(tmp_path / "base") == tree_digest(made / "base")


def test_a_checkpoint_of_this_machine_is_named_and_not_copied(tmp_path):
    save_tiny(tmp_path / "checkpoint")

    base_diffusion.run(
        source=tmp_path / "checkpoint",
        base_diffusion=tmp_path / "base",
        params=base_diffusion.BaseDiffusionParams(source="local"),
    )

    assert [path.name for path in (tmp_path / "base").iterdir()] == ["diffusion_reference.json"]
    assert pipeline_folder(tmp_path / "base") == tmp_path / "checkpoint"


def test_a_checkpoint_that_changed_since_is_refused(tmp_path):
    save_tiny(tmp_path / "checkpoint")
    params = base_diffusion.BaseDiffusionParams(source="local")
    base_diffusion.run(source=tmp_path / "checkpoint", base_diffusion=tmp_path / "base", params=params)
    (tmp_path / "checkpoint" / "picture.png").write_bytes(b"not read")
    pipeline_folder(tmp_path / "base")

    (tmp_path / "checkpoint" / "unet" / "config.json").write_text("{}")

    with pytest.raises(ValueError, match="expected the pipeline that .*base names, found another"):
        pipeline_folder(tmp_path / "base")


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found no model_index.json"):
        base_diffusion.run(
            source=tmp_path, base_diffusion=tmp_path / "b", params=base_diffusion.BaseDiffusionParams(source="local")
        )
    with pytest.raises(ValueError, match="expected a pointer to a pipeline, found none"):
        pipeline_folder(tmp_path)


def test_training_writes_weights_card_curves_and_counts(trained):
    metrics = json.loads((trained / "training.json").read_text())
    curves = pd.read_csv(trained / "training.csv")

    assert (trained / "model" / "pytorch_lora_weights.safetensors").is_file()
    assert "Denoising Diffusion Policy Optimization" in (trained / "model" / "README.md").read_text()
    assert (metrics["images"], metrics["epochs"], metrics["steps"]) == (8, 2, 4)
    assert metrics["reward"]["last"] == curves["reward_mean"].dropna().iloc[-1]
    assert curves["loss"].notna().sum() == 4


def test_a_training_that_was_killed_ends_with_the_same_bytes(made, trained, tmp_path):
    # What a kill leaves: checkpoints up to some epoch. They hold no number of epochs, so a shorter run gives one.
    train(made, tmp_path / "short", scratch=tmp_path / "scratch", num_epochs=1)
    random.seed(5)
    torch.rand(3)

    train(made, tmp_path / "resumed", scratch=tmp_path / "scratch")

    for name in ("model", "training.json", "training.csv"):
        assert tree_digest(tmp_path / "resumed" / name) == tree_digest(trained / name)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_training_goes_on_from_the_epoch_that_it_was_told_to_stop_in(made, trained, tmp_path, monkeypatch, epoch):
    # The last epoch as well: what is written behind it is as if it had never been stopped.
    scratch = tmp_path / "scratch"

    told_to_stop(
        monkeypatch, DDPOTrainer, "step", call=epoch + 1, then=lambda: train(made, tmp_path / "cut", scratch=scratch)
    )

    train(made, tmp_path / "resumed", scratch=scratch)
    for name in ("model", "training.json", "training.csv"):
        assert tree_digest(tmp_path / "resumed" / name) == tree_digest(trained / name)


def test_a_training_whose_newest_checkpoint_is_damaged_goes_on_from_an_older_one_or_the_start(made, trained, tmp_path):
    scratch = tmp_path / "scratch"
    train(made, tmp_path / "cut", scratch=scratch)
    newest, older = (scratch / "checkpoints" / f"checkpoint_{epoch}" for epoch in (1, 0))

    for damaged in (newest, older):
        next(damaged.glob("*.safetensors")).unlink()
        train(made, tmp_path / damaged.name, scratch=scratch)

        for name in ("model", "training.json", "training.csv"):
            assert tree_digest(tmp_path / damaged.name / name) == tree_digest(trained / name)
        next(newest.glob("*.safetensors")).unlink()


def test_the_whole_noise_predictor_is_trained_where_no_adapter_is(made, tmp_path):
    train(made, tmp_path, lora=None, num_epochs=1)

    evaluate(made, tmp_path / "model", tmp_path)

    assert (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    gain = json.loads((tmp_path / "evaluation.json").read_text())["true_reward"]["gain"]
    assert gain["value"] != 0.0


def test_evaluation_draws_both_from_the_same_noise_for_held_out_prompts(made, trained, tmp_path):
    rows = read_table(trained / "images", IMAGES).to_pylist()
    splits = {row["prompt_id"]: row["split"] for row in read_table(made / "image_prompts", IMAGE_PROMPTS).to_pylist()}
    train(made, tmp_path, num_epochs=1, train_learning_rate=1e-12)
    evaluate(made, tmp_path / "model", tmp_path)

    assert [splits[row["prompt_id"]] for row in rows] == ["test"] * 3
    assert all(len(row[name]) == 2 for row in rows for name in ("policy", "reference"))
    assert rows[0]["policy"] != rows[0]["reference"]
    untrained = read_table(tmp_path / "images", IMAGES).to_pylist()
    assert [row["policy"] for row in untrained] == [row["reference"] for row in untrained]
    assert [row["reference"] for row in untrained] == [row["reference"] for row in rows]


def test_an_adapter_is_laid_on_no_other_base(made, trained, tmp_path):
    base_diffusion.run(
        source=made / "prompts.txt",
        base_diffusion=tmp_path / "base",
        params=base_diffusion.BaseDiffusionParams(scratch=SCRATCH, seed=1),
    )

    with pytest.raises(ValueError, match="it was trained on another pipeline"):
        load_policy(tmp_path / "base", trained / "model")
    with pytest.raises(ValueError, match="expected what ddpo_training wrote, found none"):
        load_policy(tmp_path / "base", tmp_path)


def test_a_wrong_reward_is_refused_before_anything_is_loaded(made, tmp_path):
    with pytest.raises(ValueError, match="reward: expected brightness"):
        ddpo_training.run(
            base_model=tmp_path / "nothing",
            image_prompts=tmp_path / "nothing",
            rows=tmp_path / "nothing",
            model=tmp_path / "model",
            metrics=tmp_path / "metrics.json",
            plots=tmp_path / "plots.csv",
            scratch=tmp_path / "scratch",
            params=DiffusionTrainingParams(reward="bright"),
        )


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def report(trained, to, **params):
    diffusion_report.run(
        training_metrics=trained / "training.json",
        training_plots=trained / "training.csv",
        evaluation_metrics=trained / "evaluation.json",
        images=trained / "images",
        report=to,
        params=diffusion_report.DiffusionReportParams(**params),
    )
    return Page(to.read_text())


def test_the_page_shows_images_before_and_after_and_asks_for_nothing(trained, tmp_path):
    page = report(trained, tmp_path / "page.html")

    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3 * 2 * 2
    assert all(picture["src"].startswith("data:image/png;base64,") and picture["alt"] for picture in pictures)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    text = " ".join(page.words)
    for words in ("Before", "After", "Mean reward of an epoch", "held-out prompts with 2 images each"):
        assert words in text


def test_prompts_and_titles_stand_in_the_page_as_text(trained, tmp_path):
    page = report(trained, tmp_path / "page.html", title="<script>alert(1)</script>", num_examples=1)

    assert "script" not in {tag for tag, _ in page.tags}
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 4


@pytest.mark.parametrize(
    ("gain", "headline"),
    [
        ((0.2, 0.1, 0.3), "Images are rewarded more than before training"),
        ((-0.2, -0.3, -0.1), "Images are rewarded less than before training"),
        ((0.0, -0.1, 0.1), "It is not shown that images are rewarded more than before training"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_gain(trained, tmp_path, gain, headline):
    shutil.copytree(trained, tmp_path / "all")
    metrics = json.loads((trained / "evaluation.json").read_text())
    metrics["true_reward"]["gain"] = dict(zip(("value", "low", "high"), gain, strict=True))
    (tmp_path / "all" / "evaluation.json").write_text(json.dumps(metrics))

    assert headline in report(tmp_path / "all", tmp_path / "page.html").words


def test_metrics_that_lack_something_are_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "all")
    (tmp_path / "all" / "evaluation.json").write_text("{}")

    with pytest.raises(ValueError, match="expected 'true_reward/gain' among the metrics, found none"):
        report(tmp_path / "all", tmp_path / "page.html")
