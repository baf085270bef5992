"""Extended Mind memories: collections of K and V that any request can attend to."""
