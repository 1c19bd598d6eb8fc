"""Vectors trained by reinforcement learning with a verifiable reward (Bias-Only Adaptation).

Takes a model running in llama.cpp, the same model in PyTorch and a task; gives a SteeringVector and the log of its
training. llama.cpp answers, PyTorch computes the gradient. It loads no model and writes no vector file.

rloo         the loop: answers, rewards, gradient, update, log
settings     how it is trained: of a laptop, of the paper
rollouts     answers sampled by the engine, graded
advantages   rewards to advantages, and what the loss is divided by
policy       log-probabilities of answers in PyTorch, and their gradient
adapter      the trained vector as parameters that steer a network
optimiser    Adam with warm-up and clipping, saved and restored
checks       what is refused before a training starts
records      the log, step by step
plots        reward, length and norms over the steps
"""
