"""A model repository of some other system, as it is served beside a release."""

import json

from m2ost_contract import sha256_file

NETWORK = """
backend: "python"
max_batch_size: 4
input [
  { name: "PIXELS" data_type: TYPE_UINT8 dims: [ 8, -1, 3 ] },
  { name: "WEIGHT" data_type: TYPE_FP64 dims: [ 1 ] }
]
"""
SLIDES = """
backend: "python"
max_batch_size: 0
input [
  { name: "SLIDE" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "CENTER" data_type: TYPE_INT32 dims: [ -1, 2 ] },
  { name: "NOTE" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "MPP" data_type: TYPE_FP64 dims: [ 1 ] optional: true }
]
"""
MODELS = {
    "other_network": NETWORK,
    "other_slides": SLIDES,
    "other_hurried": SLIDES + 'parameters { key: "may_take_long" value { string_value: "0" } }',
    "other_long": NETWORK + 'parameters { key: "may_take_long" value { string_value: "1" } }',
    "other_ensemble": 'platform: "ensemble" max_batch_size: 4',
}


def folder_beside(folder, models=MODELS):
    """Write one; its networks have the profile ``onnxruntime`` too."""
    for name, config in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
        if "network" in name:
            (folder / name / "configs").mkdir()
            (folder / name / "configs" / "onnxruntime.pbtxt").write_text(config.replace("python", "onnxruntime"))
    files = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*.pbtxt")}
    (folder / "manifest.json").write_text(json.dumps({"kind": "other", "files": files}))
    return folder
