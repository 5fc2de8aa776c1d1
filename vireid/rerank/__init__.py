"""Re-ranking: better distances from the neighbours of queries and gallery."""
