"""The registry: a store of recordings, its gRPC service, its REST view and pages, and one command that serves them."""
