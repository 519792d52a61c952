"""Sweeps: a grid or a list of settings, each a training over the same data; one page that compares them, and a winner."""
