"""The masked autoencoder, its encoder and its classifier: configuration, patches, masks, blocks."""
