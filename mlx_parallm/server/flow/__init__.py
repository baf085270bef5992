"""A request under way: its sequences, the queue and the streams they feed."""
