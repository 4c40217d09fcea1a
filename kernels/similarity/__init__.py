"""K2, similarity of units: inner products of the rows of each model with those of another, or of one reference."""
