"""Supervised fine-tuning (SFT): texts and conversations, packed or not, whole or their answers alone."""
