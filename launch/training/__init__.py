"""The training commands' one skeleton, and their evaluations."""
