"""The sd-scripts command line and its TOML dialects."""
