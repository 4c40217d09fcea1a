"""Making and measuring populations of networks."""
