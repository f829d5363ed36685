"""How a cache is read: samples of columns as batches for training."""
