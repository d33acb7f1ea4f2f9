"""Binary Classifier Optimization (BCO), with the weights of prompts by underlying distribution matching (UDM)."""
