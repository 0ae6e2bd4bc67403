"""Asking a registry: a server over gRPC, or a folder of spool files."""
