#!/usr/bin/env python3
"""Judges the reports that ThreadSanitizer wrote (log_path): prints those about Quern, and fails for them.

gRPC's library is not instrumented, so the locks under which it hands a call and its messages from thread
to thread are not seen, while the functions of its headers are compiled into our programs and are. A data
race is left out where one of the two accesses is gRPC's own: the innermost function outside of the
standard library and of Protocol Buffers is in one of gRPC's headers. Any race between two places of ours is
reported, and so is every other kind of report.
  tests/tsan_reports.py FILE...
"""
import re
import sys

# Not whose access it is, but on whose behalf: what these functions touch belongs to their caller.
PASSIVE_NAME = re.compile(r"std::|__gnu_cxx::|google::protobuf::|quern::\w+::v1::|"
                          r"(operator (new|delete)(\[\])?|mem\w+|free|malloc|calloc|realloc)$")
PASSIVE_FILE = re.compile(r" (/usr/include/(c\+\+|google/protobuf)/|\S*\.pb\.(h|cc):|\S*libsanitizer/)")


def name_of(frame):
    """The function's qualified name without result, arguments and template arguments."""
    name = re.sub(r"^#\d+ ", "", frame).replace("(anonymous namespace)", "anonymous")
    while True:
        shorter = re.sub(r"<[^<>]*>", "", name.replace("operator()", "operator_call"))
        if shorter == name:
            break
        name = shorter
    name = name.split("(")[0].strip()
    return name if name.startswith("operator ") else name.split(" ")[-1]


def accesses(report):
    """The stacks, innermost first, of the two accesses of a data race."""
    stacks, current = [], None
    for line in report.splitlines():
        if re.match(r"^  (Previous )?(atomic )?(read|write) (of size|\[)", line, re.IGNORECASE):
            current = []
            stacks.append(current)
        elif not line.strip():
            current = None
        elif current is not None and line.lstrip().startswith("#"):
            current.append(line.strip())
    return stacks


def is_grpcs(stack):
    for frame in stack:
        name = name_of(frame)
        if PASSIVE_FILE.search(frame) or PASSIVE_NAME.match(name):
            continue
        return name.startswith("grpc::") or " /usr/include/grpc" in frame
    return False


def ours(text):
    for report in re.split(r"^={10,}\n", text, flags=re.MULTILINE):
        # Without its last line it is half a report: the test killed the program while it wrote.
        if "WARNING: ThreadSanitizer" not in report or "\nSUMMARY: ThreadSanitizer" not in report:
            continue
        if "data race" in report and any(map(is_grpcs, accesses(report))):
            continue
        yield report


def main(paths):
    reports = [report for path in paths for report in ours(open(path, errors="replace").read())]
    print("\n".join(reports))
    print(f"ThreadSanitizer: {len(reports)} reports about Quern")
    return 1 if reports else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
