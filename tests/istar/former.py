"""A folder of iStar as it was exported before the package had its own name."""

import json
import re
import shutil

from m2ost_contract import sha256_file

_MAY_TAKE_LONG = re.compile(r'parameters \{\s*key: "may_take_long"\s*value \{\s*string_value: "1"\s*\}\s*\}\n')


def as_formerly(folder, destination):
    """Write the folder with the words, the imports and the config parameters of then."""
    shutil.copytree(folder, destination)
    for path in [*destination.glob("*/1/model.py"), *destination.rglob("*.pbtxt")]:
        text = _MAY_TAKE_LONG.sub("", path.read_text().replace("folder_sha256", "baseline_sha256"))
        path.write_text(text.replace("m2ost_istar.serving", "m2ost_preprocess.istar.serving"))
    manifest = json.loads((destination / "manifest.json").read_text())
    manifest["kind"] = "istar-baseline"
    manifest["info"]["baseline_sha256"] = manifest["info"].pop("folder_sha256")
    manifest["files"] = {name: sha256_file(destination / name) for name in manifest["files"]}
    (destination / "manifest.json").write_text(json.dumps(manifest))
    return destination
