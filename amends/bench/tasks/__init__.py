"""Task definitions for lm-evaluation-harness, which takes them from this folder with --include_path."""
