"""The ways to estimate FSLRs from an update and probe batches."""
