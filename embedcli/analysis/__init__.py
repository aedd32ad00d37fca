"""What is built on stored vectors: search, evaluation, probing, verification, comparison."""
