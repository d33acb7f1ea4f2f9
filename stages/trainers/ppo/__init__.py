"""Proximal Policy Optimization (PPO): a policy, a value head, and steps on answers that were scored."""
