"""Many recordings in one resumable command: hear each, keep its memory, ask it, write down its words.

recordings.py finds them, results.py keeps what is done, plan.py says what is left, work.py does one recording's part
of it, here or on Ray (on_ray.py), and search.py answers questions about all of them. It knows backends, and Ray, by
what they are asked to do; importing it loads neither.
"""
