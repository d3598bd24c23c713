"""Number formats: how a quantized matrix is stored, and what it means. Knows torch and nothing of the rest."""
