"""The ops of the model, one per file, each the plain PyTorch statement of its equation. Knows nothing of the rest."""
