"""K5, permuted gather: move the units of a whole population, one read and one write of each weight."""
