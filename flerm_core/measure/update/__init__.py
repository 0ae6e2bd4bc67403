"""The update of one optimiser step, tensor by tensor, at learning rate 1."""
