"""The page that goes with a trained model; the same settings give the same page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.trainers.core.loss_terms import LossTerms, changed_terms

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_card(
    *,
    method: str,
    title: str,
    paper: str,
    base_model: str | None,
    settings: Mapping[str, Any],
    is_adapter: bool = False,
    is_encoder_decoder: bool = False,
    pipeline_tag: str | None = None,
    library: str | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
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
        pipeline_tag: what the model is for, in the words of model hubs. None: it generates text.
        library: what loads the model. None: transformers, or peft an adapter.
        name: what the model is called. None calls it by what it is.
        tags: further tags.
        facts: further entries of the front matter, such as its license.
    """
    front: dict[str, Any] = {"base_model": base_model} if base_model else {}
    front["library_name"] = library or ("peft" if is_adapter else "transformers")
    front["pipeline_tag"] = pipeline_tag or ("text2text-generation" if is_encoder_decoder else "text-generation")
    front["tags"] = list(dict.fromkeys(["plumbline", method, *tags]))
    front |= facts or {}
    origin = f"It started from `{base_model}`." if base_model else "Its base model has no public name."
    kind = "Adapter" if is_adapter else "Model"
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {name or f'{kind} trained by {title}'}",
        "",
        f"{origin} {f'{kind} trained by {title}. ' if name else ''}The method is described in {paper}.",
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


def card_of(
    trainer: Any,
    base_model: str | None,
    *,
    model_name: str | None = None,
    tags: str | Sequence[str] | None = None,
    language: str | Sequence[str] | None = None,
    license: str | None = None,  # noqa: A002 - the documented name
    dataset_name: str | Sequence[str] | None = None,
) -> str:
    """Text of the page of a trainer's model.

    Args:
        trainer: one of this package, or any with the same attributes.
        base_model: repository of the model that training started from; None takes the name that the model was loaded
            by, if that is no folder.
        model_name: what the model is called. None calls it by what it is.
        tags: one or more tags besides those of the project and the method.
        language: one or more codes of languages.
        license: identifier of a license.
        dataset_name: one or more repositories of what it was trained on.
    """
    terms = changed_terms(trainer.args) if isinstance(trainer.args, LossTerms) else ()
    names = (*_SETTINGS, *getattr(trainer.args, "method_fields", ()), *terms)
    facts = {"language": language, "license": license, "datasets": dataset_name}
    return model_card(
        method=trainer.method,
        title=trainer.title,
        paper=trainer.paper,
        base_model=base_model or public_name(trainer.model),
        settings={name: getattr(trainer.args, name) for name in names if hasattr(trainer.args, name)},
        is_adapter=hasattr(trainer.model, "peft_config"),
        is_encoder_decoder=getattr(trainer, "is_encoder_decoder", False),
        pipeline_tag=getattr(trainer, "pipeline_tag", None),
        name=model_name,
        tags=[tags] if isinstance(tags, str) else tags or (),
        facts={name: value for name, value in facts.items() if value},
    )


def rows_on_card(learned: Mapping[str, Mapping[str, int]]) -> str:
    """Part of the page that says what the model learned from, and what was cut or left out before.

    Args:
        learned: `rows`, counts of the rows to train on and of those left out, and `encoded`, of how many completions
            how many were rejected and truncated; empty where none was, or for all nothing.
    """
    parts = []
    if encoded := learned.get("encoded"):
        number = encoded["completions"]
        shares = (f"{encoded[name]:,} ({encoded[name] / number:.1%}) were {name}" for name in ("rejected", "truncated"))
        parts.append(f"Of {number:,} completions {' and '.join(shares)}.")
    if rows := learned.get("rows"):
        parts.append(f"Rows: {', '.join(f'{count:,} {name}' for name, count in rows.items()).replace('_', ' ')}.")
    return "\n".join(["\n## Rows", "", *parts, ""]) if parts else ""


def public_name(model: Any) -> str | None:
    """Repository that a model was loaded from; None if it was a folder, or made here."""
    name: str = getattr(getattr(model, "config", None), "name_or_path", "") or ""
    return name if _REPOSITORY.fullmatch(name) and not Path(name).exists() else None
