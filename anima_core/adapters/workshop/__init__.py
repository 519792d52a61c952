"""What is made of adapters without training: merged, resized, scaled, moved to another number of blocks, baked, extracted.

Each operation takes a `LoadedAdapter` and gives another, layer by layer; models are read, and written, one tensor at a time.
"""
