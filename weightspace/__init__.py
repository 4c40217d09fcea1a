"""Weights as data: layouts, symmetries, alignment. Imports nothing by itself; use the modules."""
