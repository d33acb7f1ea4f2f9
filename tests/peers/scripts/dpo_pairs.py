"""Pairs of a good and a bad answer, against a reference of its own."""

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from stages.trainers import DPOTrainer

pairs = [{"prompt": f"is {n} even? ", "chosen": "yes, it is", "rejected": "go away"} for n in range(0, 32, 2)]
data = Dataset.from_list(pairs).train_test_split(0.25, seed=0)
model, reference = (AutoModelForCausalLM.from_pretrained("gpt2") for _ in range(2))
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token

trainer = DPOTrainer(
    model,
    reference,
    beta=0.1,
    args=TrainingArguments(
        "out", per_device_train_batch_size=2, max_steps=3, remove_unused_columns=False, report_to="none"
    ),
    train_dataset=data["train"],
    eval_dataset=data["test"],
    tokenizer=tokenizer,
    max_length=64,
    max_prompt_length=32,
)
trainer.train()
print(trainer.evaluate()["eval_rewards/accuracies"])
trainer.save_model("out")
