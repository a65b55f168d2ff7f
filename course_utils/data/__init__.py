"""From a data set's address to the tensors that a network sees."""
