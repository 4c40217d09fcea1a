"""The evaluation contract: what a generator must report before anybody believes it."""
