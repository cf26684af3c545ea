"""Speed and size, measured on real servers. `make bench` prints one table; RESULTS.md says how to read it."""
