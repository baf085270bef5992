"""Everything that holds K and V, and recurrent states: rows of the batch, pages, prefixes."""
