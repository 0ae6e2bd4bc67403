"""The wire contract of the registry: generated code, and conversion from and to core values."""
