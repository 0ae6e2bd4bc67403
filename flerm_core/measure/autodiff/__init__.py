"""Derivatives and activations: what the estimators ask of torch's automatic differentiation."""
