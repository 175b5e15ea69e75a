"""Everything that changes weights: `engine.py` is the only loop, a Task (`adversarial.py`, ...) says what one step does.

Not here: network definitions (`networks/`), scores of images (`scoring/`), files of a run beyond its checkpoint (`run.py`).
"""
