"""A script that runs llama.cpp's own converter. convert.py runs it in a process of its own, in which the converter's
torch, its prints and its exit status stay.

    python -P convert_driver.py CONVERTER_FOLDER [arguments of convert_hf_to_gguf.py]

The converter knows a vocabulary's pre-tokenizer by a hash of the tokens of one text, so it knows no vocabulary that is
not in its list. This script knows some more by the pre-tokenizer's definition. It imports nothing of the package.
"""

import importlib
import json
import sys
from typing import Any

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
# as tokenizer.json writes what src/llama-vocab.cpp calls LLAMA_VOCAB_PRE_TYPE_QWEN2
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {_QWEN2: "qwen2"}


def pre_tokenizer_name(tokenizer_json: dict[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer that a tokenizer.json defines; None if it is not in the table."""
    try:
        split, byte_level = tokenizer_json["pre_tokenizer"]["pretokenizers"]
        regex = split["pattern"]["Regex"]
        plain = (split["type"], split["behavior"], split["invert"]) == ("Split", "Isolated", False)
    except (KeyError, TypeError, ValueError):
        return None
    return PRE_TOKENIZERS.get(regex) if plain and byte_level.items() >= _BYTE_LEVEL.items() else None


def main() -> None:
    """Run the converter with the remaining arguments. Exits 1, the reason on the last line of stderr."""
    folder = sys.argv.pop(1)
    sys.path.insert(0, folder)
    converter = importlib.import_module("convert_hf_to_gguf")
    model_class = importlib.import_module("conversion.base").TextModel
    by_hash = model_class.get_vocab_base_pre

    def by_hash_or_definition(model: Any, tokenizer: Any) -> str:
        try:
            name: str | None = by_hash(model, tokenizer)
        except NotImplementedError:
            written = json.loads((model.dir_model / "tokenizer.json").read_text(encoding="utf-8"))
            loaded = json.loads(tokenizer.backend_tokenizer.to_str())  # some classes put their own in its place
            name = pre_tokenizer_name(written) if pre_tokenizer_name(written) == pre_tokenizer_name(loaded) else None
        if name is None:
            sys.exit(
                "its pre-tokenizer is known neither to llama.cpp's converter nor to edge-steer, "
                f"which knows by definition: {', '.join(PRE_TOKENIZERS.values())}"
            )
        return name

    model_class.get_vocab_base_pre = by_hash_or_definition
    converter.main()


if __name__ == "__main__":
    main()
