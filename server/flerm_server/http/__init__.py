"""HTTP: the REST view under /api/v1 and the web pages."""
