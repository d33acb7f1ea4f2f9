"""Denoising Diffusion Policy Optimization (DDPO): a diffusion model, and steps on images that were scored.

The configuration and the trainer stand in modules of their own, for the trainer needs the extra `diffusion`.
"""
