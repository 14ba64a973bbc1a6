"""A small labelled dataset that needs no download, rendered by `python -m preprocess demo`."""
