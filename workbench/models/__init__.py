"""Loading models, and the trust card; the only part that knows transformer_lens."""
