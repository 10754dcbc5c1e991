"""Sources of training data: drawn shapes and converters."""
