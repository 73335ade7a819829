"""What models say and what it is worth: shared by the runs that forget, by the verbs and by the benchmarks."""
