"""Only what follows the template of an answer is learned."""

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from stages.trainers import DataCollatorForCompletionOnlyLM, SFTTrainer

data = Dataset.from_dict({"question": ["how are you", "who is there"] * 8, "answer": ["fine", "a friend"] * 8})
model = AutoModelForCausalLM.from_pretrained("gpt2")
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token


def as_texts(rows):
    pairs = zip(rows["question"], rows["answer"], strict=True)
    return [f"### Question: {question}\n### Answer: {answer}" for question, answer in pairs]


collator = DataCollatorForCompletionOnlyLM("### Answer:", tokenizer=tokenizer)
trainer = SFTTrainer(
    model,
    TrainingArguments("out", per_device_train_batch_size=4, max_steps=3, report_to="none"),
    train_dataset=data,
    formatting_func=as_texts,
    data_collator=collator,
    tokenizer=tokenizer,
)
trainer.train()
trainer.save_model("out")
