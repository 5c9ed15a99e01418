"""Problems, the prompts made of them, and whether held-out problems leak into training."""
