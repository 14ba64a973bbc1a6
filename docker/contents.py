"""What the image carries is listed with its licences: Python's packages, the libraries inside them, Debian's packages.

    python docker/contents.py FOLDER      # FOLDER/sbom.cdx.json (CycloneDX) and FOLDER/licences.md, for people

A package names its own licence. The libraries that wheels bring along have no such name on them: FFmpeg's say theirs in
the file, the others are known by name (`LIBRARIES`), and tests/repository/test_docker.py fails for one that is not.
Static libraries in other files cannot be told apart; the texts of their licences lie beside the package's own.
"""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Component = dict[str, Any]  # of CycloneDX

UNKNOWN = "NOASSERTION"
GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"  # programs that are linked to it may have any licence
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
GNU = "LGPL-3.0-or-later OR GPL-2.0-or-later"
LIBRARIES = {
    "FLAC": "BSD-3-Clause",
    "SvtAv1Enc": "BSD-3-Clause-Clear",
    "Xau": "MIT",
    "aom": "BSD-2-Clause",
    "asound": "LGPL-2.1-or-later",
    "avif": "BSD-2-Clause",
    "brotlicommon": "MIT",
    "brotlidec": "MIT",
    "cfitsio": "CFITSIO",
    "crypto": "OpenSSL",
    "cudart": NVIDIA,
    "cvcuda": "Apache-2.0",
    "dav1d": "BSD-2-Clause",
    "drm": "MIT",
    "freetype": "FTL OR GPL-2.0-or-later",
    "gfortran": GCC,
    "gmp": GNU,
    "gnutls": "LGPL-2.1-or-later",
    "gomp": GCC,
    "harfbuzz": "MIT-Modern-Variant",
    "hogweed": GNU,
    "jpeg": "IJG AND BSD-3-Clause AND Zlib",
    "lcms2": "MIT",
    "lzma": "0BSD",
    "mp3lame": "LGPL-2.0-or-later",
    "nettle": GNU,
    "nvcv_types": "Apache-2.0",
    "nvjpeg": NVIDIA,
    "ogg": "BSD-3-Clause",
    "openblasp-r0": "BSD-3-Clause",
    "opencore-amrnb": "Apache-2.0",
    "opencore-amrwb": "Apache-2.0",
    "openjp2": "BSD-2-Clause",
    "opus": "BSD-3-Clause",
    "png16": "libpng-2.0",
    "quadmath": "LGPL-2.1-or-later",
    "s2n": "Apache-2.0",
    "scipy_openblas": "BSD-3-Clause",
    "scipy_openblas64_": "BSD-3-Clause",
    "sharpyuv": "BSD-3-Clause",
    "sndfile": "LGPL-2.1-or-later",
    "ssl": "OpenSSL",
    "tiff": "libtiff",
    "unistring": GNU,
    "vpl": "MIT",
    "vpx": "BSD-3-Clause",
    "webp": "BSD-3-Clause",
    "webpdemux": "BSD-3-Clause",
    "webpmux": "BSD-3-Clause",
    "x264": "GPL-2.0-or-later",
    "x265": "GPL-2.0-or-later",
    "xcb": "MIT",
    "xcb-shape": "MIT",
    "xcb-shm": "MIT",
    "xcb-xfixes": "MIT",
    "z": "Zlib",
    "zstd": "BSD-3-Clause OR GPL-2.0-only",
}
FAMILIES = {"aws-": "Apache-2.0", "google_cloud_cpp_": "Apache-2.0"}
FFMPEG = re.compile(rb"lib(?:av|sw|postproc)[a-z]* license: (L?GPL) version ([0-9.]+) or later")

# What auditwheel makes of libx264.so.165: libx264-d6533a8d.so.165, or libcudart.3eda8113.so.13.
GRAFTED = re.compile(r"lib(.+?)((?:[-.][0-9a-f]{8})+)(?:\.so)?\.?(.*?)(?:\.so)?")
FOLDERS = ("*.libs/lib*.so*", "*/.libs/lib*.so*", "*/*/.libs/lib*.so*", "torch/lib/libg*.so*")


def bundled(packages: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the libraries that wheels bring along, each with its name and the number in its file's name."""
    for pattern in FOLDERS:
        for file in sorted(packages.glob(pattern)):
            named = GRAFTED.fullmatch(file.name) or re.fullmatch(r"lib(.+?)()\.so\.?(.*)", file.name)
            if named:
                yield file, named[1], named[3]


def licence_of(file: Path, name: str) -> str:
    """Return a library's licence as SPDX writes it: FFmpeg's is what it says itself, because it can be built as GPL."""
    if name.startswith(("av", "sw", "postproc")) and name not in LIBRARIES:
        says = FFMPEG.search(file.read_bytes())
        return f"{says[1].decode()}-{float(says[2])}-or-later" if says else UNKNOWN
    family = next((licence for begin, licence in FAMILIES.items() if name.startswith(begin)), UNKNOWN)
    return LIBRARIES.get(name, family)


def licence_of_package(package: importlib.metadata.Distribution) -> Component:
    """Return what a package's metadata say: an SPDX expression, else a short field, else the classifiers."""
    metadata = package.metadata
    if "License-Expression" in metadata:
        return {"expression": metadata["License-Expression"]}
    field = metadata["License"].strip() if "License" in metadata else ""
    kinds = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if "License ::" in line]
    if field and "\n" not in field and field != "UNKNOWN":
        return {"license": {"name": field}}
    return {"license": {"name": ", ".join(kinds) or field.split("\n")[0] or UNKNOWN}}


def python_packages(packages: Path) -> list[Component]:
    """Return Python's packages, each with the libraries that its wheel brings along."""
    libraries: dict[str, list[Component]] = {}
    owners = {
        str(packages / file): package.name
        for package in importlib.metadata.distributions(path=[str(packages)])
        for file in package.files or []
        if ".so" in file.name
    }
    for file, name, number in bundled(packages):
        component = {"type": "library", "name": f"lib{name}", "licenses": [{"expression": licence_of(file, name)}]}
        if number:
            component["version"] = number
        component["properties"] = [{"name": "file", "value": str(file.relative_to(packages))}]
        libraries.setdefault(owners[str(file)], []).append(component)
    components = []
    for package in importlib.metadata.distributions(path=[str(packages)]):
        component = {
            "type": "library",
            "name": package.name,
            "version": package.version,
            "purl": f"pkg:pypi/{re.sub('[-_.]+', '-', package.name).lower()}@{package.version}",
            "licenses": [licence_of_package(package)],
        }
        if package.name in libraries:
            component["components"] = libraries[package.name]
        components.append(component)
    return sorted(components, key=lambda component: component["name"].lower())


def debian_packages(root: Path = Path("/")) -> list[Component]:
    """Return Debian's packages, each with the licences that its copyright file names."""
    release = platform.freedesktop_os_release()["ID"]
    fields = "${Package}\t${Version}\t${Architecture}\n"
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", fields], capture_output=True, encoding="utf-8", check=True
    ).stdout
    components = []
    for name, version, architecture in (line.split("\t") for line in listed.splitlines()):
        text = ""
        copyright_file = root / "usr/share/doc" / name / "copyright"
        if copyright_file.is_file():
            text = copyright_file.read_text(encoding="utf-8", errors="replace")
        names = set(re.findall(r"^License: *(\S.*)$", text, flags=re.MULTILINE))
        names |= set() if names else set(re.findall(r"common-licenses/([A-Za-z0-9.-]+[A-Za-z0-9])", text))
        components.append(
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:deb/{release}/{name}@{version}?arch={architecture}",
                "licenses": [{"license": {"name": licence.strip()}} for licence in sorted(names) or [UNKNOWN]],
            }
        )
    return components


def licence_names(component: Component) -> str:
    """Return a component's licences as one text."""
    licences = component["licenses"]
    return ", ".join(licence.get("expression") or licence["license"]["name"] for licence in licences)


def write_table(title: str, rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown, whose first row is its head."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([f"## {title}", "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""])


def for_people(python: list[Component], debian: list[Component]) -> str:
    """Return the list for people: first what asks something of those who pass the image on."""
    inside = [(library, package) for package in python for library in package.get("components", [])]
    copyleft = [
        (library["name"], licence_names(library), f"{package['name']} {package['version']}")
        for library, package in inside
        if "GPL" in licence_names(library)
    ] + [(package["name"], licence_names(package), "itself") for package in python if "GPL" in licence_names(package)]
    closed = [
        (component["name"], component["version"], licence_names(component))
        for component in (*python, *debian)
        if "nvidia" in licence_names(component).lower() or "NVIDIA" in component["name"].upper()
    ]
    head = ("name", "version", "licence")
    return "\n".join(
        [
            "# What this image carries",
            "",
            "Using it is free. Who passes it on passes on all of this: the source of what is under the GPL or LGPL",
            "has to be offered (the projects of the packages named publish it), and NVIDIA's licences (the CUDA EULA)",
            "hold for what is NVIDIA's. FFmpeg in av is linked to x264 and x265, so the GPL holds for all of it.",
            "",
            write_table("GPL and LGPL in Python's packages", [("name", "licence", "inside of"), *copyleft]),
            write_table("NVIDIA's", [head, *closed]),
            *(
                write_table(title, [head, *((row["name"], row["version"], licence_names(row)) for row in rows)])
                for title, rows in (("Python's packages", python), ("Debian's packages", debian))
            ),
        ]
    )


def main(folder: Path) -> None:
    """Write both lists of the environment that runs this, and of the system around it."""
    python, debian = python_packages(Path(sysconfig.get_path("purelib"))), debian_packages()
    folder.mkdir(parents=True, exist_ok=True)
    document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": [*python, *debian]}
    (folder / "sbom.cdx.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "licences.md").write_text(for_people(python, debian), encoding="utf-8")
    print(f"{len(python)} Python packages and {len(debian)} of Debian are listed in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
