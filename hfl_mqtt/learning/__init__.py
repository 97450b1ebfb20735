"""The numbers: weights, codecs, strategies, tasks, training."""
