"""The model of params.yaml: every section in one place, for checking, for editors and for people."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from stages.base_diffusion import BaseDiffusionParams
from stages.base_model import BaseModelParams
from stages.contracts.stage import PARAMS_FILE, Section, parse_section, read_params
from stages.demo_feedback import DemoFeedbackParams
from stages.demo_image_prompts import DemoImagePromptsParams
from stages.density_ratio import DensityRatioParams
from stages.diffusion_evaluation import DiffusionEvaluationParams
from stages.diffusion_report import DiffusionReportParams
from stages.evaluation import EvaluationParams
from stages.gate import GateParams
from stages.image_prompts import ImagePromptsParams
from stages.ingestion import IngestionParams
from stages.normalization import NormalizationParams
from stages.prompt_embedding import PromptEmbeddingParams
from stages.reference_logprobs import ReferenceLogprobsParams
from stages.report import ReportParams
from stages.reward_evaluation import RewardEvaluationParams
from stages.reward_report import RewardReportParams
from stages.shift_diagnosis import ShiftDiagnosisParams
from stages.tokenization import TokenizationParams
from stages.trainers import METHODS, method_of
from stages.trainers.core.sections import TrainingSection
from stages.training_rows import OPTIONAL, RowsParams


class InputsParams(Section):
    """Section `inputs`: what comes from outside; each a path that DVC watches."""

    feedback: str = "data/demo/feedback.jsonl"
    """The feedback log: a file, or a folder of files."""
    base_model: str = "data/demo/demonstrations.jsonl"
    """The folder of the model to improve, or the demonstrations that `base_model.source: scratch` learns from."""
    encoder: str = "models/base"
    """The folder that `prompt_embedding.encoder` names, if it names one, so that DVC watches it."""
    image_prompts: str = "data/demo/image_prompts.txt"
    """List of prompts for images, one on each line."""
    base_diffusion: str = "data/demo/image_prompts.txt"
    """The folder of a Stable Diffusion checkpoint, or the prompts that one from `scratch` has room for."""


def _with_fields(base: type[Section], kinds: Mapping[str, type[Section]], name: str, doc: str | None = None) -> Any:
    """A section that has those of `kinds` below it, besides those of `base`."""
    fields: dict[str, Any] = {key: (kind, kind()) for key, kind in kinds.items()}
    return create_model(name, __base__=base, __doc__=doc or base.__doc__, **fields)


TrainingParams = _with_fields(
    Section,
    {name: method.section() for name, method in METHODS.items()},
    "TrainingParams",
    "Section `training`: one section per method.",
)
GatesParams = _with_fields(
    Section, dict.fromkeys(METHODS, GateParams), "GatesParams", "Section `gate`: one section per method."
)
RowsOfMethods = _with_fields(
    Section,
    {name: RowsParams for name, method in METHODS.items() if method.rows in OPTIONAL},
    "RowsOfMethods",
    "Section `rows`: one section per method that has a choice of its rows.",
)


class RunParams(Section):
    """Section `run`."""

    methods: list[str] = Field(default_factory=lambda: ["bco"])
    """Methods that `make demo` and `python -m pipelines run` bring up to date; `dvc repro` does all of the graph."""


class Params(Section):
    """All of params.yaml."""

    inputs: InputsParams = InputsParams()
    demo_feedback: DemoFeedbackParams = DemoFeedbackParams()
    base_model: BaseModelParams = BaseModelParams()
    ingestion: IngestionParams = IngestionParams()
    normalization: NormalizationParams = NormalizationParams()
    tokenization: TokenizationParams = TokenizationParams()
    prompt_embedding: PromptEmbeddingParams = PromptEmbeddingParams()
    density_ratio: DensityRatioParams = DensityRatioParams()
    reference_logprobs: ReferenceLogprobsParams = ReferenceLogprobsParams()
    shift_diagnosis: ShiftDiagnosisParams = ShiftDiagnosisParams()
    rows: RowsOfMethods = RowsOfMethods()  # type: ignore[valid-type] # made of METHODS
    training: TrainingParams = TrainingParams()  # type: ignore[valid-type] # made of METHODS
    evaluation: EvaluationParams = EvaluationParams()
    gate: GatesParams = GatesParams()  # type: ignore[valid-type] # made of METHODS
    report: ReportParams = ReportParams()
    reward_evaluation: RewardEvaluationParams = RewardEvaluationParams()
    reward_report: RewardReportParams = RewardReportParams()
    demo_image_prompts: DemoImagePromptsParams = DemoImagePromptsParams()
    image_prompts: ImagePromptsParams = ImagePromptsParams()
    base_diffusion: BaseDiffusionParams = BaseDiffusionParams()
    diffusion_evaluation: DiffusionEvaluationParams = DiffusionEvaluationParams()
    diffusion_report: DiffusionReportParams = DiffusionReportParams()
    run: RunParams = RunParams()
    references: list[str] = Field(default_factory=lambda: ["base"])
    """Models that log-probabilities are computed under: `base`, and each that `start_from` of a method names."""


def load_params(path: Path = PARAMS_FILE) -> Params:
    """All of params.yaml, checked.

    Raises:
        ValueError: a key is unknown, with the nearest one, or a value is of the wrong kind.
    """
    return check_params(read_params("", path))


def check_params(values: Any) -> Params:
    """What stands in params.yaml as its model.

    Raises:
        ValueError: as `load_params`, or trainings start from each other.
    """
    for name, limits in _section(values, "gate").items():
        for key, listed in (limits if isinstance(limits, dict) else {}).items():
            if listed is None and key in {"minimums", "maximums"}:
                raise ValueError(
                    f"{PARAMS_FILE}: gate.{name}.{key}: expected limits by metric, such as `auc: 0.5`, found nothing; "
                    f"write `{key}: {{}}` for none, or take the line out"
                )
    found = parse_section(_params_of(values), values, where="")
    _check_starts(dict(found.training))
    _check_merges(dict(found.training), found.base_model.quantisation)
    return found


def _check_merges(sections: Mapping[str, Any], quantisation: str | None) -> None:
    """See that no adapter is to become part of weights of few bits, which the training would refuse later."""
    for name, section in sections.items():
        merges = getattr(section, "merge_lora", False) and section.lora is not None
        if quantisation is not None and merges and section.start_from == "base":
            raise ValueError(
                f"{PARAMS_FILE}: training.{name}.merge_lora: expected base_model.quantisation: null, found "
                f"{quantisation}, into whose weights no adapter can be merged without rounding it away; set "
                "merge_lora: false, which saves the adapter"
            )


def _check_starts(sections: Mapping[str, TrainingSection]) -> None:
    """See that no training waits for its own model, which DVC would call a cycle without saying what to do."""
    for name in sections:
        path = [name]
        while (start := sections.get(path[-1])) is not None and start.start_from in sections:
            path.append(start.start_from)
            if path[-1] == name:
                way = " from ".join(path)
                raise ValueError(
                    f"{PARAMS_FILE}: training.{name}.start_from: expected a model that is there before, found {way}; "
                    "to go on from an earlier run's policy, keep its folder elsewhere and name that as "
                    "inputs.base_model with base_model.source: local (README, From there)"
                )
            if path[-1] in path[:-1]:
                break


def _section(values: Any, name: str) -> dict[str, Any]:
    section = values.get(name) if isinstance(values, dict) else None
    return section if isinstance(section, dict) else {}


def _params_of(values: Any) -> type[Params]:
    """The model with a section for each further training, such as that of a second reward model.

    Raises:
        ValueError: such a section says no method.
    """
    training = values.get("training") if isinstance(values, dict) else None
    further = {}
    for name, section in training.items() if isinstance(training, dict) else ():
        if name not in METHODS:
            method = section.get("method") if isinstance(section, dict) else None
            if method is None:
                near = get_close_matches(str(name), METHODS, n=1)
                raise ValueError(
                    f"{PARAMS_FILE}: training.{name} is no method{f'; did you mean {near[0]}?' if near else '.'} "
                    f"A further training says which method it is by, as `method: {near[0] if near else 'reward'}`"
                )
            further[name] = method_of(method)
    if not further:
        return Params
    below: dict[str, tuple[Any, dict[str, type[Section]]]] = {
        "training": (TrainingParams, {name: method.section() for name, method in further.items()}),
        "rows": (RowsOfMethods, {name: RowsParams for name, method in further.items() if method.rows in OPTIONAL}),
        "gate": (GatesParams, dict.fromkeys(further, GateParams)),
    }
    kinds = {key: _with_fields(base, sections, base.__name__) for key, (base, sections) in below.items()}
    found: type[Params] = _with_fields(Params, kinds, "Params")
    return found


def schema() -> dict[str, Any]:
    """JSON schema of params.yaml, for editors."""
    return Params.model_json_schema()
