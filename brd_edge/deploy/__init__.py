"""ONNX export and one engine builder per runtime."""
