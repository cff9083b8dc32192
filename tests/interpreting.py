"""Triton's interpreter, with less to do.

Each call from one function of a kernel to another looks through the language for what is to be replaced, which the
launch has done; and each operation makes a table of dtypes. Half of the time went there.
"""

from triton.runtime import interpreter

is_builtin = interpreter.tl.core.is_builtin


def _once(patch):
    def patched(function):
        languages = [
            each
            for each in function.__globals__.values()
            if each is interpreter.tl or each is interpreter.tl.core
        ]
        if any(is_builtin(each.load) for each in languages):
            return patch(function)
        return interpreter._LangPatchScope()

    return patched


def _remembered(dtype_of):
    found = {}

    def remembered(dtype):
        name = dtype.scalar.name
        if name not in found:
            found[name] = dtype_of(dtype)
        return found[name]

    return remembered


interpreter._patch_lang = _once(interpreter._patch_lang)
interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)
