"""Losses as pure functions, tensors in and tensors out. Imports torch and nothing of ours."""
