"""What runs on a board: the client role with the vitals of the hardware."""
