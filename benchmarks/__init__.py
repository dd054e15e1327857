"""Benchmarks: yardsticks and measurements, run by hand; results are committed as text."""
