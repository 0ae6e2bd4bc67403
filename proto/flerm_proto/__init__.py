"""The registry's wire contract: generated code, and the conversion of core values to messages."""
