"""Multilayer perceptrons, one program a model: what numba compiles, without a compiler on the user's machine."""
