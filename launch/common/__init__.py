"""The command line, recipes and start-up that the commands share."""
