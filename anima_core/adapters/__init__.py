"""Adapters: their types, how they are put into a model, and the files they are saved as."""
