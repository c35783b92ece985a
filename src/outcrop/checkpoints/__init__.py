"""What a checkpoint is, from its config, tokenizer files and tensor headers alone. Pure: bytes in, values out."""
