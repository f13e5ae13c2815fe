"""Vision graphs in ONNX Runtime."""
