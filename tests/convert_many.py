"""A script that converts folders to F32 GGUF files: convert_many.py CONVERTER DRIVER FOLDER...

It runs edge_steer/convert_driver.py on each folder in a process of its own, forked when all is imported, so that
none sees another's traces. Every tokenizer is written as the byte-level BPE it is here, whatever
the architecture's own models have: the converter of some knows only SentencePiece.
"""

import importlib
import os
import runpy
import sys
from typing import Any


def main() -> None:
    scripts, driver, *folders = sys.argv[1:]
    sys.path.insert(0, scripts)
    importlib.import_module("convert_hf_to_gguf")
    base = importlib.import_module("conversion.base")
    prepare = base.TextModel.prepare_metadata

    def byte_level(model: Any, vocab_only: bool) -> Any:
        model.set_vocab = model._set_vocab_gpt2
        return prepare(model, vocab_only)

    base.TextModel.prepare_metadata = byte_level
    for folder in folders:
        sys.argv = [driver, scripts, folder, "--outtype", "f32", "--outfile", f"{folder}.gguf"]
        if not (child := os.fork()):
            runpy.run_path(driver, run_name="__main__")
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"cannot convert {folder}")


if __name__ == "__main__":
    main()
