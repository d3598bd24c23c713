"""Number formats: packing, AWQ and GGUF readers and writers, calibration. Knows neither kernels nor runtime."""
