"""Several models behind one address: each has an engine of its own, loaded when it is asked for."""
