"""`hfl doctor`: what keeps this board from learning, each finding with its remedy."""
