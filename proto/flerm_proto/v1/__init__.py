"""Generated code of `flerm.registry.v1`."""
