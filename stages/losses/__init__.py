"""Losses as pure functions, tensors in and tensors out. Import torch, one another and no layer above."""
