"""The embedded default: tiny random models and drawn pictures, as real files, and a training on them."""
