"""Direct Preference Optimization (DPO) and the losses on pairs that share its trainer."""
