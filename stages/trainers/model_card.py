"""The page that goes with a trained model; the same settings give the same page."""

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(
    *,
    method: str,
    title: str,
    paper: str,
    base_model: str | None,
    settings: Mapping[str, Any],
    is_adapter: bool = False,
    is_encoder_decoder: bool = False,
) -> str:
    """Text of a README.md with the front matter that model hubs read.

    Args:
        method: short name of the method, such as "bco".
        title: the method's full name.
        paper: URL of its paper.
        base_model: repository of the model that training started from; None if it has no public name.
        settings: what was chosen for training.
        is_adapter: whether the weights are an adapter of the base model.
        is_encoder_decoder: whether prompt and completion go to an encoder and a decoder.
    """
    front: dict[str, Any] = {"base_model": base_model} if base_model else {}
    front["library_name"] = "peft" if is_adapter else "transformers"
    front["pipeline_tag"] = "text2text-generation" if is_encoder_decoder else "text-generation"
    front["tags"] = ["plumbline", method]
    origin = f"It started from `{base_model}`." if base_model else "Its base model has no public name."
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {'Adapter' if is_adapter else 'Model'} trained by {title}",
        "",
        f"{origin} The method is described in {paper}.",
        "",
        "## Settings",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items()),
        "",
    ]
    return "\n".join(parts)


_SETTINGS = ("beta", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "seed")


def card_of(trainer: Any, base_model: str | None) -> str:
    """Text of the page of a trainer's model.

    Args:
        trainer: a `FeedbackTrainer`.
        base_model: repository of the model that training started from; None if it has no public name.
    """
    names = (*_SETTINGS, *getattr(trainer.args, "method_fields", ()))
    return model_card(
        method=trainer.method,
        title=trainer.title,
        paper=trainer.paper,
        base_model=base_model,
        settings={name: getattr(trainer.args, name) for name in names if hasattr(trainer.args, name)},
        is_adapter=hasattr(trainer.model, "peft_config"),
        is_encoder_decoder=getattr(trainer, "is_encoder_decoder", False),
    )
