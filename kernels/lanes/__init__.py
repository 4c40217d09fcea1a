"""Convolutional and other small networks with samples in the lanes of vector registers: what numba compiles."""
