"""What the methods share: columns and groups of a table, folds of its rows, and gaps between its groups."""
