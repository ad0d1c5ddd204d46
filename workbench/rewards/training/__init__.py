"""Training of a reward model: plan, rows, trainers, and the validation of the saved model."""
