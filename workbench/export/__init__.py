"""Publish a finished model with a model card, loadable without this project."""
