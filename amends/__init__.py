"""amends: a toolkit to put right what a language model learnt. Import a method by name: ``from amends.unlearn import flat``."""

__version__ = "0.1.0"
