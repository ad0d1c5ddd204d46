"""The reward contract, the registry of names, and the training of reward models."""
