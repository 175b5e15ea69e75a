"""Everything that changes weights: `engine.py` has the only loop, a Task (`adversarial.py`, ...) defines one step.

Not here: network definitions (`networks/`), scores of images (`scoring/`), files of a run beyond its checkpoint (`run.py`).
"""
