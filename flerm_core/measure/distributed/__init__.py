"""Processes that measure together, and how they share the model's tensors."""
