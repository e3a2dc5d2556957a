import os
import socket
import subprocess
import threading

if os.environ["KEEPS"] == "thr":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
elif os.environ["KEEPS"] == "sock":
    kept = socket.socketpair()
elif os.environ["KEEPS"] == "file":
    kept = open("notes", "w")
elif os.environ["KEEPS"] == "proc":
    kept = subprocess.Popen(["sleep", "60"])
    parent = os.getpid()


def predict():
    return os.getpid()
