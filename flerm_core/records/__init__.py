"""Recordings, measurements and queries as plain values, and the rules that they keep."""
