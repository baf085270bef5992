"""What keeps the engine well: faults of rows, steps that take too long, memory that runs short."""
