"""Vectors trained by reinforcement learning with a verifiable reward (Bias-Only Adaptation), and their rivals.

Takes a model running in llama.cpp, the same model in PyTorch and a task; gives a vector, low-rank matrices or weights,
and the log of their training. llama.cpp answers, PyTorch computes the gradient. It loads no model and writes no vector.

rloo         the loop: answers, rewards, gradient, update, log
sft          the same on teachers' solutions: distillation
settings     what is trained and how: of a laptop, of the paper
trainee      the model in both runtimes, and the engine that answers next
trainables   what is trained as parameters of the network: a vector, low-rank matrices, all weights
rollouts     answers sampled by the engine, graded
advantages   rewards to advantages, and what the loss is divided by
policy       log-probabilities of answers in PyTorch, and their gradient
optimiser    Adam with its schedule and clipping, saved and restored
checks       what is refused before a training starts
records      the log, step by step
plots        reward, length and norms over the steps
"""
