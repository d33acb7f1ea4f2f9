"""An adapter learns to answer instructions."""

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from stages.trainers import SFTTrainer

data = Dataset.from_list([{"text": f"### Question: what is {n} and one? ### Answer: {n + 1}"} for n in range(16)])
model = AutoModelForCausalLM.from_pretrained("gpt2")
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token

trainer = SFTTrainer(
    model,
    args=TrainingArguments("out", per_device_train_batch_size=4, max_steps=3, logging_steps=1, report_to="none"),
    train_dataset=data,
    dataset_text_field="text",
    max_seq_length=64,
    tokenizer=tokenizer,
    peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model("out")
