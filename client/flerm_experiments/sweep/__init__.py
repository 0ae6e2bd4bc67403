"""Sweeps: the loss against learning rate at many scales, trained plainly, matched and otherwise, kept in a registry.

A `Sweep` says what is compared; `search` which rates a curve still needs; `plan` which trainings come next; `places` where
they run; `ledger` what a registry holds of it; `results` and `drawings` what came out.
"""
