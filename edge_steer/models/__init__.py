"""What a MODEL names: as a file, and running.

Takes what a user names, gives files and running models. It is the only wing that knows both runtimes.

load             a MODEL, running: an Engine of llama.cpp or a Reference of PyTorch
exchange         a model file that runs with trained weights in place of its own
sources          the files a MODEL names: a GGUF file or Hugging Face weights, fetched if need be
recipe           models/<name>/recipe.toml
index_files      GGUF files in wheels of the Python package index
convert          Hugging Face weights to GGUF, by llama.cpp's converter
convert_driver   the script that runs the converter in a process of its own
quantize         a GGUF in a type, by llama.cpp's quantiser
importance       importance matrices, for the smallest types
file             a GGUF model as a value: header, type, digest
describe         what a model or vector file says of itself
machine          what llama.cpp can use of this machine, and how it would run a file
"""
