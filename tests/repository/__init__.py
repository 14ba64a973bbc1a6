"""Tests of what is between the packages: imports, packaging, docs, the image, benchmarks."""
