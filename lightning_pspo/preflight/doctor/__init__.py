"""Find what is wrong with a run before it starts: settings, data, tokenizer, machine, and a short measured probe."""
