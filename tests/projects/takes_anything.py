def keywords(**kwargs):
    return kwargs


def one_dict(values):
    return sorted(values)


def nothing():
    return "nothing"


class Callable:
    def __call__(self, x):
        return x * 2


instance = Callable()
not_callable = 3


async def later(x):
    return x + 1


def raises_a_type_error(x):
    return x + None


def raises(text="boom"):
    raise ValueError(text)


def exits():
    raise SystemExit(3)


def variable(name):
    import os

    return os.environ[name]
