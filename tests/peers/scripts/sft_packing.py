"""Texts of a formatting function are packed into rows of one length."""

from datasets import Dataset
from transformers import TrainingArguments

from stages.trainers import SFTTrainer

data = Dataset.from_dict({"title": [f"day {n}" for n in range(40)], "body": ["the weather was good"] * 40})


def as_text(row):
    return f"# {row['title']}\n{row['body']}"


trainer = SFTTrainer(
    "gpt2",
    args=TrainingArguments("out", per_device_train_batch_size=2, max_steps=3, report_to="none"),
    train_dataset=data,
    formatting_func=as_text,
    packing=True,
    max_seq_length=32,
)
trainer.train()
trainer.save_model("out")
