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
    heading: str | None = None,
    library: str | None = None,
    task: str | None = None,
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
        heading: first line of the page; None says what trained the model.
        library: name of the library that loads the model; None is transformers, or peft for an adapter.
        task: what hubs list the model under; None is the generation of text.
    """
    front: dict[str, Any] = {"base_model": base_model} if base_model else {}
    front["library_name"] = library or ("peft" if is_adapter else "transformers")
    front["pipeline_tag"] = task or ("text2text-generation" if is_encoder_decoder else "text-generation")
    front["tags"] = ["plumbline", method]
    origin = f"It started from `{base_model}`." if base_model else "Its base model has no public name."
    kind = "Adapter" if is_adapter else "Model"
    made = f"It was trained by {title}. " if heading else ""
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {heading or f'{kind} trained by {title}'}",
        "",
        f"{origin} {made}The method is described in {paper}.",
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
        trainer: a `PreferenceTrainer`.
        base_model: repository of the model that training started from; None if it has no public name.
    """
    names = (*_SETTINGS, *trainer.args.method_fields)
    return model_card(
        method=trainer.method,
        title=trainer.title,
        paper=trainer.paper,
        base_model=base_model,
        settings={name: getattr(trainer.args, name) for name in names},
        is_adapter=hasattr(trainer.model, "peft_config"),
        is_encoder_decoder=trainer.is_encoder_decoder,
    )
