"""Six recipes for secure and private machine learning, each of which attacks its own claim."""
