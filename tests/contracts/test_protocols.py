"""Every name that a registered protocol family shows as an example keeps the contract."""

from __future__ import annotations

from harness import registry
from harness.protocol import Protocol
from harness.testing.protocols import ProtocolContract

#: name -> (modalities, share of incomplete samples, fingerprint)
PINNED: dict[str, tuple[tuple[str, ...], float, str]] = {
    "complete": (("text", "image"), 0.0, "bcf154a46e6f67e6dd138efe358669967f769cf3da48a4ee0111c954113b2ee3"),
    "both_0.7": (("text", "image"), 0.7, "360539dfb975207b82e944c83d07ecf4ec4f8a7f96d0b2023bf7347449d5c262"),
    "text_0.7": (("text", "image"), 0.7, "c177b9b1fc4316189e9698f7b7efbfd86ab983b9c68f403ce14eca6f55352e13"),
    "image_0.3": (("text", "image"), 0.3, "9ef8f120d45f40c33cf3ea5a5613b755b369fabec1da14477526317a10ff48ca"),
    "any_0.5": (("text", "image", "audio"), 0.5, "6b4d25960ab6f67f9956686a1a3edac8d9e3c82310d58bc04a7439420c2ad5f5"),
    "both_0": (("text", "image"), 0.0, "bcf154a46e6f67e6dd138efe358669967f769cf3da48a4ee0111c954113b2ee3"),
    "both_1": (("image", "text"), 1.0, "e0143dac66ba635755aeabb3df296f1cc26e3385d85cc1bbf508c1fc005c76ce"),
    "audio_0.29": (
        ("text", "image", "audio"),
        0.29,
        "b5df468a6d82515e6414d7a855f00781575159fd878882f0d6d6625432a99bc1",
    ),
    "any_0.7": (
        ("text", "image", "audio", "video"),
        0.7,
        "716ece9cae807258c901827a2972d55bd0e09578cf7ed6eebba9a1176aaba0c3",
    ),
}


def _examples() -> set[str]:
    names = set(PINNED)
    for entry in registry.protocols:
        family = registry.protocols.get(entry.name)
        assert issubclass(family, Protocol)
        names.update(family.examples)
    return names


for _name in sorted(_examples()):
    _modalities, _share, _golden = PINNED.get(_name, (("text", "image"), None, ""))
    globals()[f"Test_{_name}"] = type(
        f"Test_{_name}",
        (ProtocolContract,),
        {"protocol": _name, "modalities": _modalities, "incomplete": _share, "golden": _golden},
    )


def test_every_builtin_example_is_pinned() -> None:
    from harness.protocols import BUILTIN

    for family in BUILTIN:
        config = registry.protocols.get(family)
        assert issubclass(config, Protocol)
        assert config.examples
        assert set(config.examples) <= set(PINNED)
    assert all(golden for _, _, golden in PINNED.values())
