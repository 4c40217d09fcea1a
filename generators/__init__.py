"""Learning from populations of networks."""
