"""The words every wing speaks: vector, steering, request.

Takes and gives plain values and arrays. It imports no other wing, and neither a runtime nor a file format.

vector          SteeringVector, its model and its tuning; the layer law
steering        a vector put to use: strength, layers, phase
backend         Request, Completion, EngineOptions; what every running model offers
sampling        how a token is chosen from its logits
runtime         what llama.cpp and PyTorch do alike with a loaded model
streaming       a completion that grows token by token
architectures   names of architectures; which llama.cpp cannot steer
quants          names of the types of a GGUF
progress        what long work tells of itself
stats           intervals and tests: arrays in, numbers out
errors          what a user can mend, in one line
"""
