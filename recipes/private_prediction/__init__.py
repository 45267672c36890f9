"""Can a server classify images that it cannot see, with a network that its client cannot see?

A server holds a trained network, a client holds images, and a provider deals correlated randomness.
"""

from recipes.private_prediction.prediction import Config, Result, describe, main, plot, run

__all__ = ["Config", "Result", "describe", "main", "plot", "run"]
