"""Files in and out: tables with their faults named, folders that appear whole or not at all, what a run was."""
