"""A simulation of replicas behind a router, in measured steps."""
