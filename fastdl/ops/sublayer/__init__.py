"""The two halves of a Transformer layer, each one raw operator for inference: `fastdl.nn`'s layers call them."""
