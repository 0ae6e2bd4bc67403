"""The registry: a store of recordings, its gRPC service, its REST view and its pages."""
