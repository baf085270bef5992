"""Request bodies of other servers' APIs."""
