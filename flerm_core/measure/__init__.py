"""Measures the FSLRs of a torch model. The only part of the core that imports torch.

`fslr_meter` makes a measurement. `estimators` turn a probe batch into numbers; they stand on
`autodiff` (derivatives and activations) and `update` (ΔW). `distributed` knows how ranks share the
model and sum their numbers, `state_guard` restores what a measurement could change.
"""
