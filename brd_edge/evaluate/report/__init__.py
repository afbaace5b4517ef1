"""The report: one HTML file that shows what a run measured, to people who were not there."""
