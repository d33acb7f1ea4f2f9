"""Single answers with a thumb up or down."""

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.trainers import KTOConfig, KTOTrainer

answers = [(" sure, here it is", True), (" no", False), (" of course", True), (" never", False)]
data = Dataset.from_list(
    [{"prompt": f"please help me {n}", "completion": text, "label": up} for n in range(4) for text, up in answers]
)
model = AutoModelForCausalLM.from_pretrained("gpt2")
tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token

args = KTOConfig(
    output_dir="out", per_device_train_batch_size=4, max_steps=3, beta=0.1, desirable_weight=1.0, report_to="none"
)
trainer = KTOTrainer(model=model, ref_model=None, args=args, train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.save_model("out")
