"""The registry's wire contract: generated messages in `v1`, their conversion to core values, errors as status codes."""
