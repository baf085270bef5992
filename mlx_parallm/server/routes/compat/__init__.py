"""Routes of other servers' APIs."""
