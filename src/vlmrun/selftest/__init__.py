"""Short training runs on this machine, each compared with one on its CPU: do its engines and kernels compute right?"""
