"""The four models: transformer (with its LLM adapter), VAE, Qwen3 and the T5 tokenizer."""
