import os

raise RuntimeError("cannot connect with " + os.environ["API_KEY"])
