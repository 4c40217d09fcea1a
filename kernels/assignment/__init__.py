"""K1, linear assignment of whole batches, each solution with a certificate."""
