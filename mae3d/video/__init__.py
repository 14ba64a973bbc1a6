"""Video files become frames at their times: the one reader, for preprocessing and for inference."""
