"""Pages for people: rendered on the server, nothing fetched from outside."""
