"""Second-order quantities of the losses of a population: Hessian-vector products, quadratic forms, exact traces."""
