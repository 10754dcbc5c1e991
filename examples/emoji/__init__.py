"""The demo on real weights: two artists' drawings of the same things, one to learn from and one to be tested on."""
