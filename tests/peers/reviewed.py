"""What was looked at of the tests that don't pass, one line each: its class and why.

A test that fails and isn't here fails the harness, and so does one that is here and passes.
"""

from typing import Literal, NamedTuple

Kind = Literal["refused", "decided", "internals", "hub", "environment"]

KINDS: dict[Kind, str] = {
    "refused": "refused on purpose, with this sentence",
    "decided": "differs on purpose",
    "internals": "asks for what is inside of TRL and not documented",
    "hub": "needs the model hub",
    "environment": "needs a package, a device or an older library",
}


class Reviewed(NamedTuple):
    """Why a test doesn't pass."""

    kind: Kind
    why: str
    """The sentence that it is refused with, as a part of it, or the reason."""


_PPO = "test_ppo_trainer.PPOTrainerTester.test_"
_DPO = "test_dpo_trainer.DPOTrainerTester.test_dpo_"
_SFT = "test_sft_trainer.SFTTrainerTester.test_"
_REWARD = "test_reward_trainer.RewardTrainerTester.test_"
_HEAD = "test_modeling_value_head."
_PEFT = "test_peft_models.PeftModelTester.test_"

_STATE_DICT = Reviewed(
    "decided", "`state_dict` names weights `pretrained_model.*`, by where they stand; TRL's names are read as well"
)
_BITS = Reviewed("environment", "needs bitsandbytes and a GPU")
_TOKEN = Reviewed("hub", "TRL skips it itself: it uploads")
_NOISE = Reviewed("internals", "`_trl_activate_neftune`; the noise itself is transformers' and tested here")
_SAMPLES = Reviewed("internals", "`_generate_samples`")

REVIEWED: dict[str, Reviewed] = {
    _PPO + "drop_last_dataloader": Reviewed("refused", "expected at least batch_size=3 rows, found 2"),
    _PPO + "generation": Reviewed("refused", "expected a tokenizer with a pad token, found none"),
    _PPO + "loss_trainer": Reviewed("hub", "holds numbers of real weights"),
    _PPO + "peft_model_ppo_adapter_rm_trainer": Reviewed(
        "refused", "reward_adapter: expected scores of a model of its own"
    ),
    _PPO + "peft_model_ppo_trainer_multi_gpu": Reviewed("environment", "needs two GPUs"),
    _PPO + "ppo_step_input_shape": Reviewed("internals", "`_step_safety_checker`"),
    _PPO + "ppo_step_rewards_shape": Reviewed("decided", "a score of shape (1, 1) is one number, and taken as such"),
    _PPO + "ppo_step_with_no_ref": _STATE_DICT,
    _PPO + "ppo_step_with_no_ref_sgd_lr_scheduler": Reviewed("internals", "`lr_scheduler.scheduler`, of accelerate"),
    _PPO + "ppo_step_with_ref_and_custom_layers_warning": Reviewed(
        "refused", "expected num_shared_layers only without ref_model"
    ),
    _PPO + "ppo_trainer_full_kl_penalty": Reviewed("internals", "`_kl_penalty`"),
    _PPO + "ppo_trainer_kl_penalty": Reviewed("internals", "`_kl_penalty`"),
    _PPO + "push_to_hub": _TOKEN,
    _PPO + "push_to_hub_if_best_reward": _TOKEN,
    **{
        f"{_DPO}lora_bf16_autocast_{place}_gpt2_{loss}_{precomputes}_{generates}": _BITS
        for place, (loss, precomputes, generates) in enumerate(
            (loss, precomputes, generates)
            for loss in ("sigmoid", "ipo", "kto_pair")
            for precomputes in (False, True)
            for generates in (False, True)
        )
    },
    _DPO + "lora_bf16_autocast_llama": _BITS,
    _DPO + "trainer_generate_during_eval_no_wandb": Reviewed("decided", "samples need no wandb: they are logged"),
    _DPO + "trainer_padding_token_is_none": Reviewed("decided", "no pad token is needed: masks say what is padding"),
    _SFT + "constant_length_dataset": Reviewed("decided", "what is left at the end is a shorter row, and not lost"),
    _SFT + "peft_sft_trainer_neftune": _NOISE,
    _SFT + "sft_trainer_with_model_neftune": _NOISE,
    _SFT + "sft_trainer_infinite_with_model": Reviewed("internals", "`train_dataset.infinite`"),
    _SFT + "sft_trainer_infinite_with_model_epochs": Reviewed("internals", "`train_dataset.infinite`"),
    _SFT + "sft_trainer_uncorrect_data": Reviewed("decided", "texts that don't fill a row are a shorter row"),
    _REWARD + "accuracy_metrics": Reviewed("internals", "`compute_accuracy`; accuracy is measured without it"),
    _REWARD + "reward_trainer_assert_value_error": Reviewed(
        "refused", "expected prompt and completion, chosen and rejected, messages or conversations"
    ),
    _REWARD + "reward_trainer_margin": Reviewed("refused", "expected a finite number as margin in every pair"),
    _REWARD + "reward_trainer_peft": Reviewed(
        "environment", "the test takes peft 0.21 for older than 0.3.0, and frozen weights for trained ones"
    ),
    "test_ddpo_trainer.DDPOTrainerTester.test_calculate_loss": _SAMPLES,
    "test_ddpo_trainer.DDPOTrainerTester.test_generate_samples": _SAMPLES,
    "test_ddpo_trainer.DDPOTrainerWithLoRATester.test_calculate_loss": _SAMPLES,
    "test_ddpo_trainer.DDPOTrainerWithLoRATester.test_generate_samples": _SAMPLES,
    _HEAD + "CausalLMValueHeadModelTester.test_from_save_transformers": _STATE_DICT,
    _HEAD + "Seq2SeqValueHeadModelTester.test_from_save_transformers": _STATE_DICT,
    _HEAD + "CausalLMValueHeadModelTester.test_push_to_hub": _TOKEN,
    _HEAD + "Seq2SeqValueHeadModelTester.test_push_to_hub": _TOKEN,
    _HEAD + "Seq2SeqValueHeadModelTester.test_generate": Reviewed(
        "environment",
        "transformers 5 can't go on with ProphetNet from an answer's beginning, without a value head either",
    ),
    _PEFT + "create_bnb_peft_model_from_config": _BITS,
    _PEFT + "save_pretrained_peft": Reviewed("decided", "the head is saved as value_head.safetensors, and no pickle"),
}
