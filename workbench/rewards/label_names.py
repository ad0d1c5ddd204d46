"""The labels of the data that a classifier with other label names learned from."""

from __future__ import annotations

from transformers import PretrainedConfig

DATA_LABELS_KEY = "data_labels"
"""The key of a model's config.json that maps the labels of its data to its label names; absent if they are the same."""


def label_name(config: PretrainedConfig, label: str) -> str:
    """Return the name that a label of the data has in the model, or `label` itself if it has no other."""
    names = config.to_dict().get(DATA_LABELS_KEY)
    return str(names.get(label, label)) if isinstance(names, dict) else label
