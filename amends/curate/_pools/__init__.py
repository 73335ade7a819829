"""What the methods share: a pool of rows and what became of each, methods in parts, embeddings and neighbours."""
