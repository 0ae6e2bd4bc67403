"""Derivatives, and the activations that they need, from torch's automatic differentiation."""
