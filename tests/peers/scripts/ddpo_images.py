"""A diffusion model learns to draw darker images."""

import random

from stages.trainers import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline


def darkness(images, prompts, metadata):
    return -images.mean(dim=(1, 2, 3)), {}


def prompt():
    return random.choice(["a red fox", "a blue boat"]), {}


pipeline = DefaultDDPOStableDiffusionPipeline("hf-internal-testing/tiny-stable-diffusion-torch", use_lora=True)
config = DDPOConfig(
    num_epochs=1,
    sample_num_steps=4,
    sample_batch_size=2,
    sample_num_batches_per_epoch=1,
    train_batch_size=2,
    train_gradient_accumulation_steps=1,
    mixed_precision=None,
)
trainer = DDPOTrainer(config, darkness, prompt, pipeline)
trainer.train()
pipeline.save_pretrained("out")
