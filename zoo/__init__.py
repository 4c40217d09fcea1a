"""Making and measuring populations of networks."""

import os

# Read at the first product of matrices. Without it the bits of MKL depend on where in memory a matrix lies, and those
# of a run on its companions. No slower on networks of our size (64-32-32-10, measured).
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
