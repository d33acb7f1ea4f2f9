"""A reward model of pairs, and a policy that learns what it likes."""

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.trainers import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer

tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token
judge = AutoModelForSequenceClassification.from_pretrained("gpt2", num_labels=1)
judge.config.pad_token_id = tokenizer.pad_token_id


def encoded(row):
    sides = {side: tokenizer(row["prompt"] + row[side]) for side in ("chosen", "rejected")}
    return {f"{name}_{side}": ids[name] for side, ids in sides.items() for name in ("input_ids", "attention_mask")}


pairs = Dataset.from_list([{"prompt": "the film was ", "chosen": "very good", "rejected": "so bad"}] * 8)
args = RewardConfig("judge", per_device_train_batch_size=4, max_steps=3, max_length=64, report_to="none")
RewardTrainer(judge, args, train_dataset=pairs.map(encoded), tokenizer=tokenizer).train()
judge.eval()

prompts = Dataset.from_dict({"query": ["the film was", "the book is", "my day was", "the food is"]})
prompts = prompts.map(lambda row: {"input_ids": tokenizer(row["query"])["input_ids"]}).with_format("torch")
config = PPOConfig(batch_size=4, mini_batch_size=2, learning_rate=1e-5)
policy = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
ppo = PPOTrainer(config, policy, None, tokenizer, prompts, data_collator=lambda rows: rows)

for rows in ppo.dataloader:
    queries = [row["input_ids"] for row in rows]
    answers = ppo.generate(queries, return_prompt=False, max_new_tokens=6, do_sample=True, pad_token_id=0)
    texts = tokenizer.batch_decode([torch.cat(both) for both in zip(queries, answers, strict=True)])
    with torch.no_grad():
        scores = judge(**tokenizer(texts, return_tensors="pt", padding=True).to(judge.device)).logits[:, 0]
    stats = ppo.step(queries, answers, list(scores))
    ppo.log_stats(stats, {"query": [row["query"] for row in rows], "response": texts}, list(scores))
ppo.save_pretrained("out")
