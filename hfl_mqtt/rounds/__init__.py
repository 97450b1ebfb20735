"""When it is said: the sans-IO machines of the rounds. Knows the protocol only."""
