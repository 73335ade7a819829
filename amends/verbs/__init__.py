"""Commands that serve every job."""
