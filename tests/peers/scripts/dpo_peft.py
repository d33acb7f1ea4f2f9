"""Pairs again, with an adapter whose absence is the reference."""

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from stages.trainers import DPOTrainer

data = Dataset.from_dict(
    {
        "prompt": ["say something kind. "] * 8,
        "chosen": ["you look well today"] * 8,
        "rejected": ["no"] * 8,
    }
)
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token

trainer = DPOTrainer(
    AutoModelForCausalLM.from_pretrained("gpt2"),
    ref_model=None,
    args=TrainingArguments("out", per_device_train_batch_size=2, max_steps=3, learning_rate=1e-3, report_to="none"),
    beta=0.1,
    loss_type="ipo",
    train_dataset=data,
    tokenizer=tokenizer,
    peft_config=LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model("out")
