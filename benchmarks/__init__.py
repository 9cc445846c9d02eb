"""Measurements and drills that are run by hand; see benchmarks/README.md."""
