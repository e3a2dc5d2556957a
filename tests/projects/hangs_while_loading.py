import time


def wait_for_nobody():
    time.sleep(3600)


wait_for_nobody()
