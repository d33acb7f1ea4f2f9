"""What a stage of the graph hands to a trainer: rows, a start, and its section of params.yaml as arguments."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from stages.models.devices import default_device
from stages.models.generation import stop_at
from stages.models.loading import load_causal_lm
from stages.models.tokenizers import load_tokenizer
from stages.rows.reading import TrainingRows
from stages.text.serving import Serving
from stages.trainers.core.processes import rows_per_process
from stages.trainers.core.sections import LoraParams, OptimisationParams
from stages.trainers.core.tracking import tracker_callbacks, tracking_folder

_NOT_OF_THE_CONFIG = {
    "method",
    "start_from",
    "lora",
    "dtype",
    "report_to",
    "gradient_checkpointing",
    "save_steps",
    "max_start_reward",
}


def config_arguments(params: OptimisationParams, *, without: Collection[str] = ()) -> dict[str, Any]:
    """A section of params.yaml as arguments of the method's config.

    Args:
        params: the section.
        without: keys that the config doesn't know.
    """
    return {
        **params.model_dump(exclude=_NOT_OF_THE_CONFIG.union(without)),
        "per_device_train_batch_size": rows_per_process(params.per_device_train_batch_size),
        "activation_checkpointing": params.gradient_checkpointing,
        "gradient_checkpointing": params.gradient_checkpointing,
        "save_strategy": "steps" if params.save_steps else "no",
        "save_steps": params.save_steps or 500,
        "save_total_limit": 2,
        "use_cpu": default_device().type == "cpu",
        "dataloader_pin_memory": default_device().type == "cuda",
        "logging_first_step": True,
    }


def adapter_config(lora: LoraParams | None, *, task_type: str) -> Any:
    """The adapter that a section describes.

    Args:
        lora: the section; None trains the whole model.
        task_type: what the model is for, in peft's words.
    """
    if lora is None:
        return None
    # peft is slow to import, and only adapters need it.
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=lora.dropout,
        task_type=task_type,
    )


def start_of(base_model: Path, serving: Serving, *, dtype: str) -> PreTrainedModel:
    """The causal language model where training starts, stopping where the rows end that it is to learn from.

    Args:
        base_model: `base_model` artifact.
        serving: facts of the rows.
        dtype: of its weights.
    """
    model = load_causal_lm(base_model, dtype=dtype)
    stop_at(model, load_tokenizer(base_model), serving.get("stop_tokens", ()))
    return model


class Job(NamedTuple):
    """What the stage `training` asks a trainer to do."""

    base_model: Path
    """`base_model` artifact, where training starts."""
    rows: TrainingRows
    """Rows of both splits."""
    scratch: Path
    """Folder of checkpoints."""
    params: Any
    """The method's section of params.yaml."""
    serving: Serving = {}  # noqa: RUF012 - nobody changes it
    """How the rows were rendered and where they end, if otherwise than the base model's."""

    def policy(self) -> PreTrainedModel:
        """The causal language model where training starts, which stops where the one that is saved will."""
        return start_of(self.base_model, self.serving, dtype=self.params.dtype)

    def train_rows(self) -> Any:
        """The rows to train on, as a dataset."""
        return self.rows.of_split("train").dataset()

    def held_out_rows(self) -> Any:
        """Those to measure on; None if there are none."""
        found = self.rows.of_split("test").dataset()
        return found if len(found) else None

    def arguments(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """The section as arguments of the method's config, but for the keys in `without`."""
        return {"output_dir": str(self.scratch), **config_arguments(self.params, without=without)}

    def beside_the_model(self, *, task_type: str, tokenizer: str = "processing_class") -> dict[str, Any]:
        """Arguments that all trainers take besides model, config and rows.

        Args:
            task_type: what the model is for, in peft's words.
            tokenizer: what the trainer calls its tokenizer.
        """
        return {
            tokenizer: load_tokenizer(self.base_model),
            "callbacks": tracker_callbacks(self.params.report_to, tracking_folder(self.scratch)),
            "peft_config": adapter_config(self.params.lora, task_type=task_type),
        }
