"""Is a Backend what the reference is?"""
