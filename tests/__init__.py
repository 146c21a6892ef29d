"""Tests, the kit they are written with, and the benchmarks."""
