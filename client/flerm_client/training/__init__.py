"""What runs inside the training process. It imports torch, and never grpc."""

from flerm_core._warnings import register_caller_package

register_caller_package("flerm_client", "torch")  # an optimiser's step calls us through torch
