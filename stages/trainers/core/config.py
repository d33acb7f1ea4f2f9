"""Configuration that preference methods share."""

import dataclasses
from typing import Any, ClassVar

from stages.text.truncation import TruncationMode
from stages.trainers.core.arguments import DocumentedArguments
from stages.trainers.core.fields import check_choice
from stages.trainers.core.loss_terms import LossTerms, check_terms


@dataclasses.dataclass
class PreferenceConfig(LossTerms, DocumentedArguments):
    """Arguments of preference trainers: those of `TrainingArguments`, and how rows and reference are handled."""

    max_length: int | None = 1024
    """Tokens of prompt and completion together, at most; of an encoder-decoder, of each that has no limit of its own.
    None sets no limit."""
    max_prompt_length: int | None = 512
    """Tokens that a prompt is cut to in a row longer than `max_length`; of an encoder-decoder, in any row. None cuts no
    prompt."""
    max_completion_length: int | None = None
    """Tokens of a completion, at most. None sets no limit of its own."""
    beta: float = 0.1
    """Scale of the implicit reward; the larger, the closer the policy stays to the reference."""
    label_pad_token_id: int = -100
    """Taken for its documented name: masks, not ids, say which tokens belong to a completion."""
    padding_value: int | None = None
    """Id that fills short rows. None takes the tokenizer's."""
    truncation_mode: str = "keep_end"
    """Whether a cut prompt keeps its end ("keep_end") or its start ("keep_start")."""
    disable_dropout: bool = True
    """Whether dropout is off in policy and reference; that of an adapter belongs to its own configuration."""
    generate_during_eval: bool = False
    """Whether evaluation samples completions of policy and reference: to the tracker, or to a file without one."""
    is_encoder_decoder: bool | None = None
    """Whether the model is an encoder-decoder; to be said only where `model_init` makes it. None reads it off."""
    precompute_ref_log_probs: bool = False
    """Whether log-probabilities under the reference are computed once, before training, and no reference is kept."""
    model_init_kwargs: dict[str, Any] | None = None
    """Arguments of `from_pretrained` where the policy is given by name."""
    ref_model_init_kwargs: dict[str, Any] | None = None
    """The same for the reference."""
    dataset_num_proc: int | None = None
    """Processes that encode raw rows. None takes one."""

    method_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the method's own settings that its model card lists."""

    def __post_init__(self) -> None:
        """Check the shared arguments.

        Raises:
            ValueError: an argument is out of range.
        """
        check_choice("truncation_mode", self.truncation_mode, TruncationMode)
        if not self.beta > 0:
            raise ValueError(f"expected beta above 0, found {self.beta}")
        check_terms(self)
        if self.label_smoothing_factor:
            raise ValueError(
                f"expected label_smoothing_factor 0, found {self.label_smoothing_factor}; it smooths what tokens are "
                "predicted, and a method that smooths labels has an argument of its own"
            )
        super().__post_init__()
