"""The command line: one file per group of commands. A command parses its options and calls the room that bears its name.

Here belong options, help texts, `doctor` and the listing of models. No other logic belongs here.
"""
