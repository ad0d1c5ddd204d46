"""Publishing: a finished model with a card, loadable without this project."""
