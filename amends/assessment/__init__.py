"""What an assessment asks, how it attacks, and what it makes of the answers."""
