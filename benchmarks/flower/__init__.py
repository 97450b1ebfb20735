"""Flower on the work of hfl-mqtt's benchmarks: real processes, real sockets, in a virtual environment of its own."""
