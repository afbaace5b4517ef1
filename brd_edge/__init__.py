"""Boundary and relation distillation, from a data set and a teacher to measured engines."""

__all__ = ["__version__"]

__version__ = "0.1.0"
