"""How things are kept and fetched.

Takes paths, ids and JSON values; knows nothing of models, vectors or results.

files         whole files or none, the cache folder
digests       SHA-256 of files, computed once for a large one
records       JSON lines that outlive a kill, one writer at a time
toml          the keys of a TOML file, each checked
hub           models and data sets of the Hugging Face hub
gguf_header   the keys and tensor list of a GGUF file
gguf_append   a GGUF file with more keys and tensors
provenance    versions and short keys for the headers of result files
package_index   files from the Python package index, by pinned digest
"""
