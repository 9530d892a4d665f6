"""The parts of recipes/paradigm.py, which compares the methods of DeepSeekMath's unified paradigm.

    methods.py         the methods: flags of the online ones, factors of the learning rates
    start.py           what all methods of a seed share: base, prompts, reward, settings
    offline_data.py    demonstrations, and samples of the base for RFT and DPO
    trainers.py        a trainer for each method
    learning_curve.py  the accuracy during training, and the end of the budget
    results.py         the folder of results: a file for each pair of method and seed
    intervals.py       means over seeds with their 95% intervals
    tables.py          final accuracies, differences of methods, the cost of catching up
    figures.py         the counterparts of the paper's figures 5 and 7

Python finds the package because a program's folder is on its path.
"""
