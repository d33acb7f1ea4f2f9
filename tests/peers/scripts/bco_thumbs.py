"""Single answers again, by binary classifier optimization."""

from datasets import Dataset
from peft import LoraConfig

from stages.trainers import BCOConfig, BCOTrainer

data = Dataset.from_list(
    [
        {"prompt": "what is new?", "completion": completion, "label": label}
        for completion, label in ((" the shop is open again", True), (" nothing", False))
    ]
    * 8
)
trainer = BCOTrainer(
    model="gpt2",
    args=BCOConfig("out", per_device_train_batch_size=4, max_steps=3, max_length=48, report_to="none"),
    train_dataset=data,
    peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model("out")
