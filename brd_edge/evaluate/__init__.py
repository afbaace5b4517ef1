"""Accuracy per engine, the zero-cost proof and the report."""
