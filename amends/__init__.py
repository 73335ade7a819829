"""amends: put right what a model learnt. Methods are imported by name: ``from amends.unlearn import flat``."""

__version__ = "0.1.0"
