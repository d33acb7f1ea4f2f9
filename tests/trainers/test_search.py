"""What transformers' loop offers besides training: callbacks, and a search of hyperparameters."""

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from tests.trainers.launched import TRAINERS
from tests.trainers.tiny import METHODS, tiny_llama
from tests.trainers.tiny_reward import staged_rows, tiny_classifier
from tests.trainers.tiny_sft import TEXTS

ROWS = {
    **{name: kind.encoded() for name, kind in METHODS.items()},
    "sft": Dataset.from_list(TEXTS),
    "reward": staged_rows(),
}


class Seen(TrainerCallback):
    """Notes what is called, and ends training behind the second step."""

    def __init__(self):
        self.events, self.logged = [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("train_begin")

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append("step_end")
        control.should_training_stop = state.global_step == 2
        control.should_evaluate = True

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.events.append("evaluate")
        assert "eval_loss" in metrics

    def on_log(self, args, state, control, logs, **kwargs):
        self.logged.append(set(logs))

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("train_end")


@pytest.mark.parametrize("name", TRAINERS)
def test_a_callback_sees_each_event_and_is_heard(tmp_path, name):
    seen = Seen()
    trainer = TRAINERS[name](tmp_path, callbacks=[seen], logging_steps=1, eval_dataset=ROWS[name])

    trainer.train()

    assert seen.events == ["train_begin", *["step_end", "evaluate"] * 2, "train_end"]
    assert trainer.state.global_step == 2
    assert any("loss" in logs for logs in seen.logged)


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINERS)
def test_hyperparameters_are_searched_by_optuna(tmp_path, name):
    optuna = pytest.importorskip("optuna", reason="optuna, which transformers searches with, isn't installed")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    model_init = tiny_classifier if name == "reward" else tiny_llama
    settings = {"ref_model": tiny_llama(seed=1)} if name in METHODS else {}
    settings |= {"eval_dataset": ROWS[name], "eval_strategy": "steps", "eval_steps": 3}
    trainer = TRAINERS[name](tmp_path, model_init=model_init, **settings)
    tried = []

    def space(trial):
        tried.append(trial.suggest_categorical("learning_rate", [1e-9, 1e-2]))
        return {"learning_rate": tried[-1]}

    best = trainer.hyperparameter_search(
        space,
        lambda metrics: metrics["eval_loss"],
        n_trials=2,
        direction="minimize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": [1e-9, 1e-2]}, seed=0),
    )

    assert sorted(tried) == [1e-9, 1e-2]
    assert best.hyperparameters == {"learning_rate": 1e-2}
