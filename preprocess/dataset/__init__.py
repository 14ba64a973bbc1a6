"""The disk contract: the schema, the opened dataset, its index and their writer."""
