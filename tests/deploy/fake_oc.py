#!/usr/bin/env python3
"""`oc` for the tests: kubectl does the work, against whatever server KUBECONFIG names.

Only what kubectl does not have is answered here. FAKE_CLUSTER names a folder: `facts.json` in it
says whether an image can be pulled and which version is built, `calls.txt` gets one line a call.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_CLUSTER"])
FACTS = json.loads((FOLDER / "facts.json").read_text())
TAG = f"""
apiVersion: image.openshift.io/v1
kind: ImageStreamTag
metadata: {{name: "atelier:{FACTS["version"]}"}}
"""


def main(words: list[str]) -> int:
    with (FOLDER / "calls.txt").open("a") as log:
        log.write(" ".join(words) + "\n")
    plain = words[2:] if words[:1] in (["--namespace"], ["-n"]) else words
    if plain[:2] == ["image", "info"]:
        return 0 if FACTS["image_pullable"] else 1
    if plain[:1] == ["start-build"]:
        create = ["kubectl", *words[:2], "create", "-f", "-"]
        return subprocess.run(create, input=TAG, text=True).returncode
    os.execvp("kubectl", ["kubectl", *words])


sys.exit(main(sys.argv[1:]))
