"""The hot loop: tokens to the verifier's embeddings, as fast as the device allows."""
