"""Command lines and wiring only; nothing imports this package."""
