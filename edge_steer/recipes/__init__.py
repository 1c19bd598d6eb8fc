"""A vector from its recipe, end to end.

Takes the folder of a vector's recipe, leaves the vector, its certificate and the record of what was done. It loads
models only through models.load.

run                                     the door to a build
plan                                    what it would do, and its steps in order
build                                   the recipes and the record
step                                    what a step is
pair_steps, vector_steps, parity_step   the steps
recipe                                  recipe.toml of a vector
build_recipe                            its tables, how the vector is made
sweep_recipe                            a sweep's choice as a recipe
demo, demo_table                        the main path on the bundled model, and its table
"""
