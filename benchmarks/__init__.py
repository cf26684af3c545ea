"""Speed and size, measured on real servers. `make bench` runs all and prints one table (benchmarks/RESULTS.md)."""
