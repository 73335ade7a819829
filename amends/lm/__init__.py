"""Language models: loading, question-answer pairs, log-probabilities of answers, training, generation."""
