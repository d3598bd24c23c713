"""What the published checkpoint calls its parts; every other name becomes one of these where a file is read."""

BODY = "body.layers."
TEXT_EMBEDDING = "tied.embedding.text_embedding.weight"
AUDIO_TABLE = "tied.embedding.modality_embeddings.0.embedding.weight"
TEXT_HEAD = "tied.head.text_head.weight"
AUDIO_HEAD = "tied.head.modality_heads.0.weight"
CODEC_PREFIX = "tied.embedding.modality_embeddings.0.model."
