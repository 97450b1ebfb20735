"""The operator's side of a fleet: its papers, what its machines are given, and how it stands."""
