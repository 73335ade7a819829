"""Measure methods and models on published benchmarks."""
