"""The commands that change a dataset: build, append, merge, split, under one lock."""
