"""A small labelled dataset that needs no download, rendered by `mae3d preprocess demo`."""
