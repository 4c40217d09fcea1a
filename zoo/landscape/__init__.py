"""Measuring the loss landscape of a population: metrics of models and of pairs, with definitions and errors."""
