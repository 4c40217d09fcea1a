"""Distances between the weight vectors of networks, and the nearest ones, streamed over populations of any size."""
