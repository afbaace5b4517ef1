"""Measurements of this project and of its peers; each module is a command."""
