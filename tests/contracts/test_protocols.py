"""Every name that a registered protocol family shows as an example keeps the contract."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from harness import registry
from harness.masking import MaskTable
from harness.protocol import Protocol, parse_protocol
from harness.testing.protocols import ProtocolContract
from harness.types import DataTable

#: name -> (modalities, share of incomplete samples where the name fixes one, fingerprint)
PINNED: dict[str, tuple[tuple[str, ...], float | None, str]] = {
    "complete": (("text", "image"), 0.0, "bcf154a46e6f67e6dd138efe358669967f769cf3da48a4ee0111c954113b2ee3"),
    "natural": (
        ("text", "image", "audio"),
        0.0,
        "9b25b30cd3e7cbd630706a713dace2f388726274a935eec738a17bca5719be93",
    ),
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
    "shared_0.5": (
        ("text", "image", "audio"),
        None,
        "d51836696aa6356033410844b3e6fc44917b79954057fdbb12ae01114a11a81a",
    ),
    "shared_0.3": (
        ("text", "image"),
        None,
        "e2a14017ef8d3b44c3e2a93e95493895ece1f156ebc27c2fb393f1b82dc34199",
    ),
    "imbalanced_0.2-0.5-0.8": (
        ("text", "image", "audio"),
        None,
        "ecafe98b770639be0337653c8e98ab8c973c69edb40c5367885065fe4ef38320",
    ),
    "imbalanced_0.5-0.8-0.2": (
        ("text", "image", "audio"),
        None,
        "644f1ec6aae3ecd30e96251ff256e145995304b558c365da6c87a8be2a03e671",
    ),
    "imbalanced_0.8-0.5-0.5": (
        ("text", "image", "audio"),
        None,
        "d87ca3c9a86dbc9b6964a0fff2355947e801667c9925b8aa437ca70aaddd42a7",
    ),
    "imbalanced_0.2-0.8": (
        ("text", "image"),
        None,
        "8c5cc6f7a25e9846ebd5d5c9178d7f6943ea52bdcb5612ecce68645a835dc825",
    ),
    "concat_both_0.7": (
        ("text", "image"),
        None,
        "9e442b5b857277137e534670f31d3301a25c06bc6453398b24a300220c645ca8",
    ),
    "concat_text_0.7": (
        ("text", "image", "audio"),
        None,
        "c67bca2f9bb259de105b48e676bf7a5df5c5c39967a61a7a49d2fabdc158c929",
    ),
    "patterns": (
        ("text", "image"),
        None,
        "65ce89214a59ee410e75122dae6618b894c35b87f5a9fc4669ba770302dea562",
    ),
    "patterns_proper": (
        ("text", "image", "audio"),
        None,
        "e47ce59daf25fa060d9df1c67e80706a8a8a03c743184a495ffaf382ebd36f9d",
    ),
    "train:complete,test:both_0.7": (
        ("text", "image"),
        None,
        "7f4439455c3cd4374ad9e16b5b1db3432195164e3f517982481861dcce157604",
    ),
    "train:complete,test:both_0..1:0.1": (
        ("text", "image"),
        None,
        "db511740190b1614bfad9d28df81a3d415e13daf6cf18a3738c8588b01b32a04",
    ),
    "train:both_0.7,test:text_0..0.9:0.1": (
        ("text", "image"),
        None,
        "03e38ddd0c14fd87863647338af16b9f314e7599bade38fa80b5c76b239c715c",
    ),
    "train:complete,test:patterns": (
        ("text", "image", "audio"),
        None,
        "a1eda8a47b9adb4276f0605f17a8c4310536e969d2b6a88e85e1f769f98c7b5f",
    ),
    "corrupt:noise_image_3": (
        ("text", "image"),
        0.0,
        "26bb39ff25568bc60b7006b08f2cae8e4f172f49c71a71cc0538bd00b072636b",
    ),
    "corrupt:typo_text_0..5": (
        ("text", "image"),
        0.0,
        "3416eb8584271220151ff54c12b7f6cbdf243027f4532b00fffadbcd3b9b19cb",
    ),
    "both_0.7+corrupt:blur_image_0..5": (
        ("text", "image"),
        0.7,
        "10543905b09a9299e3f514f5afd839508b1d10f06bea973c415f1a967c65eea1",
    ),
    "patterns+corrupt:noise_image_3": (
        ("text", "image"),
        None,
        "e5fdbe78b9f61dcefd806ae10f2588bf814f5db510ca0de0f4e525e9f12a8046",
    ),
    "train:both_0.7,test:corrupt:mismatch_text_2": (
        ("text", "image"),
        None,
        "56691caf6c4289c0ae28cc940eb4a2288c50471a711cee63815f62c3b8b7c36d",
    ),
    "frames_0.5": (
        ("text", "image"),
        0.0,
        "95fa23e21f602aacff6c3c55cba7ac19391c8d8521404b7ec29c34955d2589d7",
    ),
    "block_0.5": (
        ("text", "image"),
        0.0,
        "f08f22ee397f7514a4361287df76e6b9a2b5c797c8d2fcaa78e700a851ce74fe",
    ),
    "tail_text_0.3": (
        ("text", "image"),
        0.0,
        "86759114a13a42a905d372e81b0c761ccc4749432e0a0117384351dd7663ef0c",
    ),
    "both_0.7+frames_0.5": (
        ("text", "image"),
        0.7,
        "578b98459db9c202d07933653af01e56c27a4dc284d42a7e0473a081b591002e",
    ),
    "patterns+block_0.5": (
        ("text", "image"),
        None,
        "2eeeff84c6bf5f9931054ac491ebab755bc5b5a2a7ead2391a053feb138b3414",
    ),
    "train:complete,test:frames_0..0.9:0.1": (
        ("text", "image"),
        0.0,
        "b46407f7e01ca2136abdf7de32860a5a7a604862e21122b46bd7a44025e5a559",
    ),
    "mar_text_by_image_0.5": (
        ("text", "image"),
        0.5,
        "1b5ba02c8baaf4bfe4a491ac0ac24fe00d170e7c32d115c1a07e36490d8946d6",
    ),
    "mnar_text_by_label_0.5": (
        ("text", "image"),
        0.5,
        "0208c38af49f07e0bfbaae07e4ccef59485b3f5edfdbd12af81f0686acc6585a",
    ),
    "mnar_image_by_norm_0.3": (
        ("text", "image", "audio"),
        0.3,
        "c7aea69865184952f40aa678a13aea4f4f14e4a8511f4a43fdf0e0c2b3b619ab",
    ),
    "train:imbalanced_0.2-0.5-0.8,test:patterns": (
        ("text", "image", "audio"),
        None,
        "64caf0d4d784b5bb35530cf03cd02d66f2a93a0be4f50e14e366df8a5357b47f",
    ),
}


#: Names that stand for a file; `TestSavedTable` keeps the contract for them.
BOUND = {"table:masks/mine"}


def _examples() -> set[str]:
    names = set(PINNED)
    for entry in registry.protocols:
        family = registry.protocols.get(entry.name)
        assert issubclass(family, Protocol)
        names.update(family.examples)
    return names - BOUND


for _name in sorted(_examples()):
    _modalities, _share, _golden = PINNED.get(_name, (("text", "image"), None, ""))
    _title = "Test_" + re.sub(r"\W+", "_", _name)
    globals()[_title] = type(
        _title,
        (ProtocolContract,),
        {"protocol": _name, "modalities": _modalities, "incomplete": _share, "golden": _golden},
    )


class TestSavedTable(ProtocolContract):
    """A table that was drawn and saved is the draw itself."""

    protocol = "table:masks/mine"
    incomplete = 0.7
    golden = PINNED["both_0.7"][2]
    source: ClassVar[str] = "both_0.7"
    folder: Path

    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        with contextlib.chdir(tmp_path):
            self.build()
            yield

    def reads_values(self) -> bool:
        # The contract asks the protocol; here the protocol's file is made from the table.
        return "+" in self.source

    def build(self, table: DataTable | None = None, mask_seed: int = 0) -> MaskTable:
        table = table or self.table()
        source = MaskTable.build(parse_protocol(self.source), table, mask_seed)
        source.save(self.folder / "masks" / "mine")
        return MaskTable.build(self.parsed(), table, mask_seed)


class TestSavedTableWithConditions(TestSavedTable):
    """Also where it has several test conditions."""

    incomplete = None
    golden = PINNED["patterns"][2]
    source = "patterns"


class TestSavedTableWithChanges(TestSavedTable):
    """Also where it changes values."""

    golden = PINNED["both_0.7+frames_0.5"][2]
    source = "both_0.7+frames_0.5"


def test_every_builtin_example_is_pinned() -> None:
    from harness.protocols import BUILTIN

    for family in BUILTIN:
        config = registry.protocols.get(family)
        assert issubclass(config, Protocol)
        assert config.examples
        assert set(config.examples) <= set(PINNED) | BOUND
    assert all(golden for _, _, golden in PINNED.values())
