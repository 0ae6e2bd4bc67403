"""Sending spool files to a registry, from a process beside the training."""
