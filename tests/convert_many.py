"""A script that converts folders to F32 GGUF files: convert_many.py CONVERTER DRIVER FOLDER...

It runs edge_steer/models/convert_driver.py on each folder in a process of its own, forked when all is imported, so that
none sees another's traces. Every tokenizer is written as the byte-level BPE it is here, whatever
the architecture's own models have: the converter of some knows only SentencePiece. Keys of config.json that
transformers leaves out when it reads them are there for the converter; blocks of multi-token prediction are not.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    scripts, driver, *folders = sys.argv[1:]
    sys.path.insert(0, scripts)
    for module in ("convert_hf_to_gguf", "torch._dynamo", "transformers.models.llama.configuration_llama"):
        importlib.import_module(module)  # once, before the processes are forked
    base = importlib.import_module("conversion.base")
    prepare = base.TextModel.prepare_metadata

    def byte_level(model: Any, vocab_only: bool) -> Any:
        model.set_vocab = model._set_vocab_gpt2
        return prepare(model, vocab_only)

    def whole(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        return {**json.loads((folder / "config.json").read_text()), **load(folder, is_mistral_format)}

    load = base.ModelBase.load_hparams
    base.ModelBase.load_hparams = staticmethod(whole)
    base.ModelBase.no_mtp = True
    base.TextModel.prepare_metadata = byte_level
    for folder in folders:
        sys.argv = [driver, scripts, folder, "--outtype", "f32", "--outfile", f"{folder}.gguf"]
        if not (child := os.fork()):
            runpy.run_path(driver, run_name="__main__")
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(1)


if __name__ == "__main__":
    main()
