"""The stages of a run: each takes its recipe section and the artifacts before it."""
