"""Proximal policy optimization of a language model under a KL penalty."""
