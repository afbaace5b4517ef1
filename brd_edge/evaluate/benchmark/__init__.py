"""The files that a benchmark leaves: `benchmark.json` with its schema, and the counts of every image."""
