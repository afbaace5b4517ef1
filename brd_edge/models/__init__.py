"""Teachers and students, and their hierarchical features."""
