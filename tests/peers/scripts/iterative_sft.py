"""A model learns its own best answers, round by round."""

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from stages.trainers import IterativeSFTTrainer

model = AutoModelForCausalLM.from_pretrained("gpt2")
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token
args = TrainingArguments("out", per_device_train_batch_size=2, max_steps=4, report_to="none")
trainer = IterativeSFTTrainer(model, args, tokenizer, max_length=32)

prompt = tokenizer("once upon a time", return_tensors="pt").to(model.device)
for _ in range(2):
    samples = model.generate(**prompt, max_new_tokens=8, do_sample=True, num_return_sequences=4, pad_token_id=0)
    texts = sorted(tokenizer.batch_decode(samples, skip_special_tokens=True), key=len)
    trainer.step(texts=texts[-2:], texts_labels=texts[-2:])
trainer.save_model("out")
