"""YAML to checked, frozen models; every mistake of a file is told at once, each with its line and column."""
