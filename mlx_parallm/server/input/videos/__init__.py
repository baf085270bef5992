"""Videos of requests: found in a body, read or fetched, frames chosen and decoded in limits."""
