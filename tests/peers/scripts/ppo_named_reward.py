"""A policy learns from a function that checks its answers, which lives in a module of its own."""

import torch
from transformers import AutoTokenizer

from examples.gsm8k_reward import answer_reward
from stages.trainers import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model, set_seed

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
reference = create_reference_model(model)
ppo = PPOTrainer(PPOConfig(batch_size=2, mini_batch_size=1, ppo_epochs=2), model, reference, tokenizer)

problems = [("what is 2 and 3?", "#### 5"), ("what is 4 and 4?", "#### 8")]
queries = [tokenizer.encode(question, return_tensors="pt")[0] for question, _ in problems]
for _ in range(2):
    answers = [ppo.generate(query, return_prompt=False, max_new_tokens=4, pad_token_id=0)[0] for query in queries]
    rewards = [
        torch.tensor(answer_reward(question, tokenizer.decode(answer), {"answer": solution}))
        for (question, solution), answer in zip(problems, answers, strict=True)
    ]
    stats = ppo.step(queries, answers, rewards)
    print(stats["objective/kl"], stats["ppo/returns/mean"])
ppo.save_pretrained("out")
