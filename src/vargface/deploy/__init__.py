"""A trained checkpoint at work: embeddings of images, ONNX, 8 bits."""
