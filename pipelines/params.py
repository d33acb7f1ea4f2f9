"""The model of params.yaml: every section in one place, for checking, for editors and for people."""

from typing import Any

from pydantic import Field

from stages.base_diffusion import BaseDiffusionParams
from stages.base_model import BaseModelParams
from stages.contracts.stage import Section
from stages.demo_feedback import DemoFeedbackParams
from stages.demo_image_prompts import DemoImagePromptsParams
from stages.density_ratio import DensityRatioParams
from stages.diffusion_evaluation import DiffusionEvaluationParams
from stages.diffusion_report import DiffusionReportParams
from stages.evaluation import EvaluationParams
from stages.gate import GateParams
from stages.image_prompts import ImagePromptsParams
from stages.iterative_sft_training import IterativeSFTTrainingParams
from stages.normalization import NormalizationParams
from stages.prompt_embedding import PromptEmbeddingParams
from stages.reference_logprobs import ReferenceLogprobsParams
from stages.report import ReportParams
from stages.reward_evaluation import RewardEvaluationParams
from stages.reward_training import RewardTrainingParams
from stages.sft_training import SFTTrainingParams
from stages.shift_diagnosis import ShiftDiagnosisParams
from stages.tokenization import TokenizationParams
from stages.trainers.ddpo.section import DiffusionTrainingParams
from stages.trainers.ppo.section import PPOTrainingParams
from stages.training import BCOTrainingParams, DPOTrainingParams, KTOTrainingParams


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
    truth: str = "data/demo/truth.json"
    """What the judge needs to know; read by evaluation alone."""


class TrainingParams(Section):
    """Section `training`: one section per method."""

    bco: BCOTrainingParams = BCOTrainingParams()
    kto: KTOTrainingParams = KTOTrainingParams()
    dpo: DPOTrainingParams = DPOTrainingParams()
    reward: RewardTrainingParams = RewardTrainingParams()
    sft: SFTTrainingParams = SFTTrainingParams()
    iterative_sft: IterativeSFTTrainingParams = IterativeSFTTrainingParams()
    ppo: PPOTrainingParams = PPOTrainingParams()
    ddpo: DiffusionTrainingParams = DiffusionTrainingParams()


class GatesParams(Section):
    """Section `gate`: one section per method."""

    bco: GateParams = GateParams()
    kto: GateParams = GateParams()
    dpo: GateParams = GateParams()
    sft: GateParams = GateParams()
    iterative_sft: GateParams = GateParams()
    ppo: GateParams = GateParams()


class RunParams(Section):
    """Section `run`."""

    methods: list[str] = Field(default_factory=lambda: ["bco"])
    """Methods that `make demo` and `python -m pipelines run` bring up to date; `dvc repro` does all of the graph."""


class Params(Section):
    """All of params.yaml."""

    inputs: InputsParams = InputsParams()
    demo_feedback: DemoFeedbackParams = DemoFeedbackParams()
    base_model: BaseModelParams = BaseModelParams()
    normalization: NormalizationParams = NormalizationParams()
    tokenization: TokenizationParams = TokenizationParams()
    prompt_embedding: PromptEmbeddingParams = PromptEmbeddingParams()
    density_ratio: DensityRatioParams = DensityRatioParams()
    reference_logprobs: ReferenceLogprobsParams = ReferenceLogprobsParams()
    shift_diagnosis: ShiftDiagnosisParams = ShiftDiagnosisParams()
    training: TrainingParams = TrainingParams()
    evaluation: EvaluationParams = EvaluationParams()
    gate: GatesParams = GatesParams()
    report: ReportParams = ReportParams()
    reward_evaluation: RewardEvaluationParams = RewardEvaluationParams()
    demo_image_prompts: DemoImagePromptsParams = DemoImagePromptsParams()
    image_prompts: ImagePromptsParams = ImagePromptsParams()
    base_diffusion: BaseDiffusionParams = BaseDiffusionParams()
    diffusion_evaluation: DiffusionEvaluationParams = DiffusionEvaluationParams()
    diffusion_report: DiffusionReportParams = DiffusionReportParams()
    run: RunParams = RunParams()
    references: list[str] = Field(default_factory=lambda: ["base"])
    """Models that log-probabilities are computed under: `base`, and each that `start_from` of a method names."""


def schema() -> dict[str, Any]:
    """JSON schema of params.yaml, for editors."""
    return Params.model_json_schema()
