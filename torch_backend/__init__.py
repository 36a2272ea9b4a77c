"""The PyTorch backend (CPU and CUDA): tensor operations for the plans that the shared core makes."""
