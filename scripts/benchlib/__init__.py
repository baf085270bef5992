"""What the benchmark scripts share: servers, load, sides to compare, tables."""
