"""Where a run's numbers and samples go beside `log.jsonl`: TensorBoard's files, Weights & Biases, one file each."""
