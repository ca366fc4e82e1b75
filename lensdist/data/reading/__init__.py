"""Read one image file of any form: .npy, .npz, FITS, and DeepLenseSim's axion files."""
