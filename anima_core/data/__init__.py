"""From a folder of captioned pictures to batches of latents and text embeddings."""
