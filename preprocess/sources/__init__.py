"""Ledgers, lists, folders, tars and images become the requests of a plan."""
