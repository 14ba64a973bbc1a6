"""Tests with other projects' packages, which the lock lacks; `make peers` runs them."""
