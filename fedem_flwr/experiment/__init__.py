"""A whole experiment: rounds, controls, comparison, summary and report."""
