"""Vector files of every tool, in and out.

Takes paths and SteeringVectors, gives the other. It runs no model, and nothing that a file holds.

read                       any kind, told by its content
write                      .safetensors or .gguf, told by the suffix
native                     our safetensors
gguf_reader, gguf_writer   GGUF control vectors
zipped, pickled            torch's .pt and npz, without unpickling
layer_counting             other tools' layers by our law
tuning                     layers, strength and phase in files, and through changes
recipe_file                the vector of an export folder
steer                      a file put to use, as --vector FILE[:STRENGTH] does
named                      vectors by name, as a server and a chat have them
"""
