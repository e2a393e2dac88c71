"""Who teaches (checkpoints, ONNX models, means of several), and stores of what they said."""
