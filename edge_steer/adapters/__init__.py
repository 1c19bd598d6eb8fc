"""What changes a model's weights: low-rank adapters, and a steering written into a model file.

Takes files and folders, gives what they say, checked, and new files. It runs nothing.

choice        an adapter put to use: its file or folder, its scale, its digest
peft_folder   what an adapter of PEFT says of itself, and what of it cannot be honoured
gguf_lora     a LoRA of llama.cpp, held against the model it is for
change        what a training makes of the weights, as values: low-rank matrices, all weights; and their files
bake          a steering in a model file, which any llama.cpp runs
"""
