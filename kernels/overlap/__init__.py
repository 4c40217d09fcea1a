"""Overlap of what networks get wrong, from error bits: all pairs, or the largest of each."""
