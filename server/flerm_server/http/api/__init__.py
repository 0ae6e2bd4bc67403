"""The registry over HTTP: REST under /api/v1, pages, metrics, health."""
