"""The methods in parts by the workers of a Ray cluster."""
