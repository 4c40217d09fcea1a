"""Alignment (re-basin): the units of each model of a population in the order of a common frame."""
