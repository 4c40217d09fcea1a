"""Zoos from strangers: a corpus of hostile inputs as data, and a guard that watches what reading them does."""
