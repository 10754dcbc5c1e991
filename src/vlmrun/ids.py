"""Numbers that text, model, loss and plan must agree on. A leaf: it imports nothing."""

IMAGE_TOKEN = -200  # id of an image position: in no vocabulary, it never reaches the embedding table
IGNORE = -100  # label of a position that is not supervised

# Logits in fp32 at a time in a chunked loss: as many as a CPU's cache holds; elsewhere enough to be worth a kernel's
# start.
FP32_LOGITS_CPU = 2**19
FP32_LOGITS_GPU = 2**22
