"""The commands that this package adds to `flerm`: train, sweep, import-ptnorms."""
