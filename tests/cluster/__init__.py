"""Scenarios on real schedulers, networks and stores, all on one machine: `make cluster`, no part of `make test`."""
