"""Boundary and relation distillation, and the trainer."""
