"""Iterative supervised fine-tuning: steps on rows that are made between them, such as one's own best answers."""
