"""What a verb of the command line does, from inputs to files. Only this room knows all the others.

One module per verb, with one function of the verb's name that the command line calls; nothing here parses options or prints help.
"""
