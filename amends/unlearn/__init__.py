"""Make a language model forget."""
