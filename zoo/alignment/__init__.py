"""Alignment of zoos: which runs, to what, certified, and stored as frames."""
