"""Which runs there are, how far they are, and the one process that may write each: in a directory or in Redis."""
