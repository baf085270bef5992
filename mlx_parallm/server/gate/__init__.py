"""What a request passes on its way to a route: connection, limits, origin, key, parameters."""
