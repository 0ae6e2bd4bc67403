"""Sweeps: loss against learning rate at many scales, trained plainly, matched and by other rules.

`spec` reads what a sweep compares, `lr_search` says which rates a curve still needs, `planner`
which trainings come next, `executors` run them, `registry_state` reads what a registry holds of a
sweep, and `results` and `figures` show the outcome.
"""
