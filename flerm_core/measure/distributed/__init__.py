"""Ranks that measure together: reduction, sharding, FSDP2."""
