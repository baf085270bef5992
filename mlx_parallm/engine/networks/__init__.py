"""Plain networks in the engine's steps: their rows are planned with everybody else's."""
