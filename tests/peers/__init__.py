"""Round trips with other projects' packages: `make peers` installs them into out/peers."""
