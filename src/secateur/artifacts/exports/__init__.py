"""Files that other runtimes load: .pt2, .onnx, .pte, and their forms in whole numbers of 8 bits."""
