"""Pictures of requests: found in a body, read or fetched, decoded within limits."""
