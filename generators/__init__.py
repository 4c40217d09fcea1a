"""Learning from populations: what makes new networks, and what says whether they are new and any good."""
