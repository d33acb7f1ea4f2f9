"""Language models with a value head: beside the next token they predict the return that is still to come.

A folder that `save_pretrained` writes is a folder of the plain model with one file more, so whatever reads the model
reads it as well.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils.hub import cached_file

from stages.models.adapters import (
    is_peft_model,
    is_quantised,
    keep_differentiable,
    quiet_about_checkpointing,
    with_adapter,
)
from stages.models.hub import upload
from stages.models.loading import refused_arguments
from stages.models.logprobs import CompletionLogps, completion_logps
from stages.models.seq2seq import seq2seq_logps

VALUE_HEAD_FILE = "value_head.safetensors"
HEAD_PREFIX = "v_head."
"""Of the names of the head's weights."""
_MODEL_PREFIX = "pretrained_model."
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class ScoredTokens(NamedTuple):
    """What a model says of the completions of n rows."""

    logps: CompletionLogps
    """Log-probabilities and, where asked for, entropies."""
    values: Tensor
    """Expected return before each token, in the place that its log-probability has. Shape as `logps.token_logps`."""


class ValueHead(nn.Module):
    """One number per position, linear in the last hidden state.

    Args:
        hidden_size: width of the hidden states.
        summary_dropout_prob: dropout of the hidden state.
        v_head_init_strategy: "normal" draws the weights from a normal distribution and sets the bias to 0; None keeps
            what a linear layer starts with.
        v_head_initializer_range: standard deviation of that distribution.

    Raises:
        ValueError: the strategy is unknown.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        summary_dropout_prob: float = 0.1,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
    ) -> None:
        super().__init__()
        if v_head_init_strategy not in {None, "normal"}:
            raise ValueError(f'expected v_head_init_strategy as "normal" or None, found {v_head_init_strategy!r}')
        self.dropout = nn.Dropout(summary_dropout_prob)
        self.summary = nn.Linear(hidden_size, 1)
        if v_head_init_strategy == "normal":
            nn.init.normal_(self.summary.weight, std=v_head_initializer_range)
            nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values of shape (n, t) for hidden states of shape (n, t, d)."""
        values: Tensor = self.summary(self.dropout(hidden).to(self.summary.weight.dtype)).squeeze(-1)
        return values


class PreTrainedModelWithValueHead(nn.Module):
    """A language model and a value head on its last hidden state.

    Args:
        pretrained_model: model of transformers, or one of peft.
        summary_dropout_prob: dropout before the head. None takes what the model's config says, else 0.1.
        v_head_init_strategy: how the head starts; see `ValueHead`.
        v_head_initializer_range: see `ValueHead`.
        has_new_adapter: whether the adapter on the model was laid just now, so that it says nothing yet.
    """

    transformers_parent_class: ClassVar[Any]
    """Loads the model by name."""
    lm_head_namings: ClassVar[tuple[str, ...]]
    """Names that models of this class have for the head that predicts tokens."""
    is_encoder_decoder: ClassVar[bool]
    """Whether models of this class read the prompt with an encoder."""

    def __init__(
        self,
        pretrained_model: Any,
        *,
        summary_dropout_prob: float | None = None,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
        has_new_adapter: bool = False,
    ) -> None:
        super().__init__()
        found = bool(getattr(pretrained_model.config, "is_encoder_decoder", False))
        if found != self.is_encoder_decoder:
            kinds = {True: "an encoder-decoder", False: "a causal language model"}
            other = AutoModelForSeq2SeqLMWithValueHead if found else AutoModelForCausalLMWithValueHead
            raise ValueError(f"expected {kinds[self.is_encoder_decoder]}, found {kinds[found]}; take {other.__name__}")
        if pretrained_model.get_output_embeddings() is None:
            raise ValueError(
                f"expected a model with a head that predicts tokens, found {type(pretrained_model).__name__}; load it "
                f"with {self.transformers_parent_class.__name__}"
            )
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        self.register_load_state_dict_pre_hook(_read_names_of_trl)  # type: ignore[no-untyped-call] # torch
        self.is_peft_model = is_peft_model(pretrained_model)
        self.has_new_adapter = has_new_adapter
        text_config = self.config.get_text_config(decoder=True)
        if summary_dropout_prob is None:
            summary_dropout_prob = getattr(self.config, "summary_dropout_prob", 0.1)
        self.v_head = ValueHead(
            getattr(text_config, "word_embed_proj_dim", None) or text_config.hidden_size,
            summary_dropout_prob=summary_dropout_prob,
            v_head_init_strategy=v_head_init_strategy,
            v_head_initializer_range=v_head_initializer_range,
        ).to(next(pretrained_model.parameters()).device)

    # ---- passes ----

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        *,
        completion_mask: Tensor | None = None,
        with_entropies: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Logits, loss and values of every position; or, given a completion mask, what training needs of them.

        Args:
            input_ids: token ids; of an encoder-decoder, those of the prompts. Shape (n, t).
            past_key_values: as the model's own forward takes them.
            attention_mask: 1 for tokens, 0 for padding. Shape (n, t).
            return_past_key_values: whether they are given back as a fourth item.
            completion_mask: 1 for the tokens to score. Then the whole logits are never computed and `ScoredTokens`
                are given back; of an encoder-decoder, those of `decoder_input_ids`, the completions as they are to
                be answered. It is an argument here because wrappers that train in parallel know `forward` alone.
            with_entropies: whether the entropy at each scored token is computed.
            kwargs: further arguments of the model's forward.

        Returns:
            Logits in float32, the loss or None, and values of shape (n, t).
        """
        if completion_mask is not None:
            with self._last_hidden_states() as found:
                logps = self._completion_logps(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    completion_mask=completion_mask,
                    with_entropies=with_entropies,
                    **kwargs,
                )
            width = logps.token_logps.shape[1]
            own = found[-1][:, -completion_mask.shape[1] :]
            return ScoredTokens(logps, self.v_head(own[:, :width]))
        if "position_ids" not in kwargs and past_key_values is None and attention_mask is not None:
            kwargs.update(self._position_ids(attention_mask))
        with self._last_hidden_states() as found:
            outputs = self.pretrained_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                return_dict=True,
                **kwargs,
            )
        results = (outputs.logits.float(), outputs.loss, self.v_head(found[-1]))
        return (*results, outputs.past_key_values) if return_past_key_values else results

    def _completion_logps(self, **kwargs: Any) -> CompletionLogps:
        score = seq2seq_logps if self.is_encoder_decoder else completion_logps
        return score(self.pretrained_model, **kwargs)

    def _position_ids(self, attention_mask: Tensor) -> dict[str, Tensor]:
        """Places counted from the first token that isn't padding, so that padding on the left moves nothing."""
        if "position_ids" not in signature(self.get_base_model().forward).parameters:
            return {}
        config = getattr(self.pretrained_model, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False):
            return {}  # peft numbers the learned vectors before the tokens itself
        return {"position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0)}

    @contextmanager
    def _last_hidden_states(self) -> Iterator[list[Tensor]]:
        """Collects the last hidden states of passes made inside: after the final norm, before the output head."""
        found: list[Tensor] = []
        decoder = self.get_base_model().get_decoder()
        inside = getattr(decoder, "output_projection", None)
        if inside is None:
            handle = decoder.register_forward_hook(lambda _module, _inputs, output: found.append(output[0]))
        else:
            # FSMT's decoder makes logits by itself.
            handle = inside.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0]))
        try:
            yield found
        finally:
            handle.remove()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Sample as the model's own `generate` does."""
        return self.pretrained_model.generate(*args, **kwargs)

    # ---- what is inside ----

    def get_base_model(self) -> Any:
        """The model of transformers, without adapter and value head."""
        model = self.pretrained_model
        return model.get_base_model() if self.is_peft_model else model

    @property
    def peft_config(self) -> Any:
        """Configuration of each adapter by its name; a model without adapters has no such attribute."""
        return self.pretrained_model.peft_config

    @property
    def device(self) -> torch.device:
        """Where the model stands."""
        device: torch.device = next(self.pretrained_model.parameters()).device
        return device

    @property
    def generation_config(self) -> Any:
        """How the model samples if nothing else is said."""
        return self.pretrained_model.generation_config

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass instead of keeping them.

        Args:
            gradient_checkpointing_kwargs: arguments of `torch.utils.checkpoint`.
        """
        self.pretrained_model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=gradient_checkpointing_kwargs
        )
        if self.is_peft_model and (gradient_checkpointing_kwargs or {}).get("use_reentrant", False):
            # Reentrant checkpointing gives no gradients to a block none of whose inputs asks for one.
            self.pretrained_model.enable_input_require_grads()

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        self.pretrained_model.activation_checkpointing_disable()

    # ---- files ----

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *, peft_config: Any = None, is_trainable: bool = True, **kwargs: Any
    ) -> Self:
        """A model with its value head, which is a new one where none was saved.

        Args:
            pretrained_model_name_or_path: a model, or the folder or repository of one, of an adapter, or of what
                `save_pretrained` wrote.
            peft_config: adapter to lay on the model; only its weights and the head are trained then. One that the model
                comes with becomes part of its weights.
            is_trainable: whether an adapter that is loaded goes on being trained.
            kwargs: arguments of the value head, and of `from_pretrained` of the model. `use_safetensors=False` reads
                weights that only a pickle holds, tensors alone and no code.

        Raises:
            ValueError: the model isn't of this class's kind, a pickle that may hold the head isn't read, or arguments
                come with a model that is there already.
        """
        head_names = ("summary_dropout_prob", "v_head_init_strategy", "v_head_initializer_range")
        head_arguments = {name: kwargs.pop(name) for name in head_names if name in kwargs}
        if "reward_adapter" in kwargs:
            raise ValueError(
                "reward_adapter: expected scores of a model of its own, found an adapter to score with; load it with "
                "AutoModelForSequenceClassification, and hand its scores to PPOTrainer.step"
            )
        source = pretrained_model_name_or_path
        head: dict[str, Tensor] = {}
        if isinstance(source, str | Path):
            hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
            reads_pickle = kwargs.pop("use_safetensors", True) is False
            # What transformers takes for "safetensors where there are some".
            kwargs["use_safetensors"] = None if reads_pickle else True
            head = saved_head(str(source), hub_arguments, reads_pickle=reads_pickle)
            loader = cls.transformers_parent_class
            with refused_arguments("from_pretrained"):
                source = _load(loader, str(source), is_trainable=is_trainable, hub=hub_arguments, **kwargs)
        elif not isinstance(source, nn.Module):
            raise ValueError(
                "expected a model of torch, or a folder or repository as text or a path, found "
                f"{type(source).__name__} {source!r:.60}"
            )
        elif kwargs:
            raise ValueError(
                f"expected {', '.join(kwargs)} only with a model to load, found a {type(source).__name__}; give these "
                "arguments where you load it"
            )
        if peft_config is not None:
            source = with_adapter(source, peft_config)
        elif is_quantised(source):
            keep_differentiable(source)
        model = cls(source, has_new_adapter=peft_config is not None, **head_arguments)
        if head:
            model.v_head.load_state_dict(head)
        return model

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write the model, or its adapter, and the value head as safetensors.

        Args:
            save_directory: folder to write; the model alone can be loaded from it, too.
            state_dict: weights of the model with its head, where they were gathered from several processes; None
                takes them from here.
            kwargs: arguments of the model's own `save_pretrained`.
        """
        weights = self.state_dict() if state_dict is None else dict(state_dict)
        if state_dict is not None:
            kwargs["state_dict"] = _part(weights, _MODEL_PREFIX)
        self.pretrained_model.save_pretrained(str(save_directory), **kwargs)
        head = {name: weight.detach().cpu().contiguous() for name, weight in _part(weights, HEAD_PREFIX).items()}
        save_file(head, str(Path(save_directory) / VALUE_HEAD_FILE), metadata={"format": "pt"})

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Upload what `save_pretrained` writes into a repository of the hub.

        Args:
            repo_id: repository, made if there is none.
            kwargs: further arguments of `stages.models.hub.upload`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            upload(Path(folder), repo_id, **kwargs)


class AutoModelForCausalLMWithValueHead(PreTrainedModelWithValueHead):
    """A causal language model with a value head."""

    transformers_parent_class = AutoModelForCausalLM
    lm_head_namings = ("lm_head", "embed_out")
    is_encoder_decoder = False


class AutoModelForSeq2SeqLMWithValueHead(PreTrainedModelWithValueHead):
    """An encoder-decoder with a value head on the decoder's last hidden state."""

    transformers_parent_class = AutoModelForSeq2SeqLM
    lm_head_namings = ("lm_head", "embed_out", "output_projection")
    is_encoder_decoder = True


def _read_names_of_trl(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """TRL's state dict has the model's weights under their own names, and only those of the head under a prefix."""
    own = [name for name in weights if name.startswith(prefix)]
    if any(name.startswith(f"{prefix}{_MODEL_PREFIX}") for name in own):
        return
    for name in own:
        rest = name.removeprefix(prefix)
        if not rest.startswith(HEAD_PREFIX):
            weights[f"{prefix}{_MODEL_PREFIX}{rest}"] = weights.pop(name)


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _load(auto_class: Any, name: str, *, is_trainable: bool, hub: Mapping[str, Any], **kwargs: Any) -> Any:
    """The model that `name` leads to, with the adapter laid on it that may stand there."""
    if "torch_dtype" in kwargs:
        kwargs["dtype"] = kwargs.pop("torch_dtype")
    if file_of(name, "adapter_config.json", hub) is None:
        return auto_class.from_pretrained(name, **kwargs)
    # peft is slow to import, and only adapters need it.
    from peft import PeftConfig, PeftModel

    if kwargs["use_safetensors"] and file_of(name, "adapter_model.safetensors", hub) is None:
        _refuse_pickles(name, _weights_of(name, "adapter_model.bin", hub))
    config = PeftConfig.from_pretrained(name, **hub)
    base_kwargs = {key: value for key, value in kwargs.items() if key not in {"revision", "subfolder"}}
    base = auto_class.from_pretrained(config.base_model_name_or_path, **base_kwargs)
    with quiet_about_checkpointing():
        return PeftModel.from_pretrained(base, name, is_trainable=is_trainable, **hub)


def file_of(name: str, file: str, hub: Mapping[str, Any]) -> str | None:
    """Where a file of a folder or repository lies; None if it has none of that name."""
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)


def saved_head(name: str, hub: Mapping[str, Any], *, reads_pickle: bool) -> dict[str, Tensor]:
    """Weights of a value head that was saved with a model, as this class or TRL does.

    It is in a file of its own, or among the model's weights, which may be sharded. Beside an adapter TRL writes it into
    a pickle.

    Args:
        name: folder or repository.
        hub: arguments of `cached_file`.
        reads_pickle: whether weights that only a pickle holds are read, tensors alone.

    Returns:
        Weights by their names in `ValueHead`; none where no head was saved.

    Raises:
        ValueError: there is a pickle, which may hold a head, and it isn't to be read.
    """
    file = file_of(name, VALUE_HEAD_FILE, hub)
    if file is not None:
        return load_file(file)
    if safe := _weights_of(name, "model.safetensors", hub):
        return _head_among(safe, _read_safetensors)
    pickles = _weights_of(name, "pytorch_model.bin", hub)
    if not reads_pickle:
        _refuse_pickles(name, pickles)
    return _head_among(pickles, _read_pickle)


def _refuse_pickles(name: str, files: list[str]) -> None:
    if files:
        raise ValueError(
            f"{name}: expected the weights as safetensors, found {Path(files[0]).name}, a pickle, which may hold the "
            f"value head; `python -m pipelines convert {name}` writes safetensors beside it, or use_safetensors=False "
            "reads the tensors of a file that you trust"
        )


def _weights_of(name: str, file: str, hub: Mapping[str, Any]) -> list[str]:
    """Files of a model's weights: one, or the shards that an index of that name lists."""
    index = file_of(name, f"{file}.index.json", hub)
    if index is None:
        whole = file_of(name, file, hub)
        return [] if whole is None else [whole]
    shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [found for shard in shards if (found := file_of(name, shard, hub)) is not None]


def _head_among(files: list[str], read: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: weight for file in files for name, weight in read(file).items()}


def _read_safetensors(file: str) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as weights:
        names = [key for key in weights.keys() if key.startswith(HEAD_PREFIX)]  # noqa: SIM118 - no mapping
        return {key.removeprefix(HEAD_PREFIX): weights.get_tensor(key) for key in names}


def _read_pickle(file: str) -> dict[str, Tensor]:
    return _part(torch.load(file, map_location="cpu", weights_only=True), HEAD_PREFIX)
