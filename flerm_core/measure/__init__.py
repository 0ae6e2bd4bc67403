"""Measuring FSLRs of a torch model: projection, update, estimators, and the reduction over ranks. The only part of the core
that imports torch."""
